"""The tokenizers that there are: what a matcher takes for a token's text is what the tokenizer makes of it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from quire_engine.sampling_params import SamplingParams
from quire_engine.structured.grammars import CompiledGrammars
from quire_engine.structured.match import Match
from quire_engine.structured.vocabulary import vocabulary_of
from quire_engine.structured_outputs import StructuredOutputsParams
from tests.engine.structured.conftest import byte_level_tokenizer


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """Llama 2's kind: words begin with U+2581, and bytes are tokens of their own."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    pieces += [
        "\u2581",
        *'abcdefghijklmnopqrstuvwxyz0123456789{}[]:,".-',
        "\u2581{",
        '"name',
        '":',
        '\u2581"',
        "é",
        "日",
    ]
    bpe = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # it has no types
        tokenizer_object=bpe, unk_token="<unk>", bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    )


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte-level": byte_level_tokenizer,
    "sentencepiece": sentencepiece_like,
}


def grammars_of(tokenizer: PreTrainedTokenizerFast, vocab_size: int) -> CompiledGrammars:
    return CompiledGrammars(lambda: vocabulary_of(tokenizer, vocab_size), vocab_size, (tokenizer.eos_token_id,))


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return TOKENIZERS[request.param]()


@pytest.fixture(scope="module")
def grammars(tokenizer: PreTrainedTokenizerFast) -> CompiledGrammars:
    return grammars_of(tokenizer, len(tokenizer) + 37)


def start(grammars: CompiledGrammars, wanted: StructuredOutputsParams) -> Match:
    pending = grammars.compile(SamplingParams(structured_outputs=wanted))
    pending.wait(60)
    return pending.start()


def allowed(match: Match) -> list[int]:
    return [i for i in range(len(match.allowed) * 8) if match.allowed[i // 8] >> i % 8 & 1]


def walk(match: Match, eos: int, rng: random.Random, most: int = 400) -> list[int] | None:
    """Tokens drawn from what is allowed, without the end; None where there is none after `most`."""
    tokens: list[int] = []
    while not match.finished:
        choices = allowed(match)
        if eos in choices and rng.random() < 0.5:
            return tokens
        choices = [c for c in choices if c != eos]
        if len(tokens) == most:
            return None
        # Mostly the shorter ones, so that strings end.
        tokens.append(min(rng.sample(choices, min(2, len(choices)))))
        match.advance(tokens[-1])
    return tokens


def text_of(tokenizer: PreTrainedTokenizerFast, tokens: list[int]) -> str:
    """As a detokenizer has it, which decodes behind a prompt."""
    before = tokenizer.encode("a", add_special_tokens=False)
    whole = tokenizer.decode([*before, *tokens], clean_up_tokenization_spaces=False)
    return str(whole)[len(str(tokenizer.decode(before))) :]


PROPERTIES = st.sampled_from(["name", "a", "b", "日", 'say "so"'])
LEAVES = st.one_of(
    st.builds(
        lambda low, n: {"type": "integer", "minimum": low, "maximum": low + n},
        st.integers(-99, 99),
        st.integers(0, 999),
    ),
    st.builds(
        lambda low, n: {"type": "string", "minLength": low, "maxLength": low + n}, st.integers(0, 3), st.integers(0, 4)
    ),
    st.builds(
        lambda values: {"enum": values},
        st.lists(st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.text(max_size=3)), min_size=1, max_size=4),
    ),
    st.sampled_from(
        [
            {"type": "null"},
            {"type": "boolean"},
            {"type": ["boolean", "null"]},
            {"type": "string", "pattern": "^[a-c]{1,3}$"},
            {"type": "string", "format": "date"},
            {"type": "number", "minimum": 0, "maximum": 1},
        ]
    ),
)


def _inner(schemas: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    def an_object(properties: dict[str, object], optional: int, more: object) -> object:
        required = [name for i, name in enumerate(properties) if not optional >> i & 1]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": more}

    return st.one_of(
        st.builds(
            an_object, st.dictionaries(PROPERTIES, schemas, max_size=3), st.integers(0, 7), st.just(False) | LEAVES
        ),
        st.builds(
            lambda items, low, n: {"type": "array", "items": items, "minItems": low, "maxItems": low + n},
            schemas,
            st.integers(0, 2),
            st.integers(0, 2),
        ),
        st.builds(lambda any_of: {"anyOf": any_of}, st.lists(schemas, min_size=1, max_size=3)),
    )


SCHEMAS = st.recursive(LEAVES, _inner, max_leaves=6)


@settings(max_examples=60, deadline=None)
@given(schema=SCHEMAS, seed=st.integers(0, 2**32))
def test_whatever_the_schema_and_the_tokens_an_answer_is_valid(
    tokenizer: PreTrainedTokenizerFast, grammars: CompiledGrammars, schema: dict[str, object], seed: int
) -> None:
    eos = tokenizer.eos_token_id
    tokens = walk(start(grammars, StructuredOutputsParams(json=schema)), eos, random.Random(seed))
    if tokens is not None:
        jsonschema.validate(json.loads(text_of(tokenizer, tokens)), schema)


@settings(max_examples=60, deadline=None)
@given(
    choice=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6), min_size=1, max_size=6),
    data=st.data(),
)
def test_whatever_the_choices_each_can_be_had_and_nothing_else(
    tokenizer: PreTrainedTokenizerFast, grammars: CompiledGrammars, choice: list[str], data: st.DataObject
) -> None:
    wanted, eos = StructuredOutputsParams(choice=choice), tokenizer.eos_token_id
    for seed in range(5):
        tokens = walk(start(grammars, wanted), eos, random.Random(seed))
        assert tokens is not None
        assert text_of(tokenizer, tokens) in choice
    one = data.draw(st.sampled_from(choice))
    match = start(grammars, wanted)
    before = tokenizer.encode("a", add_special_tokens=False)
    behind = tokenizer.encode("a" + one, add_special_tokens=False)
    merged = behind[: len(before)] != before
    for token in tokenizer.encode(one, add_special_tokens=False) if merged else behind[len(before) :]:
        assert token in allowed(match)
        match.advance(token)
    assert match.finished or eos in allowed(match)


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8))
def test_a_text_by_its_code_points_is_a_regex_for_itself(
    tokenizer: PreTrainedTokenizerFast, grammars: CompiledGrammars, text: str
) -> None:
    escaped = "".join(f"\\x{{{ord(c):x}}}" for c in text)
    tokens = walk(start(grammars, StructuredOutputsParams(regex=escaped)), tokenizer.eos_token_id, random.Random(0))
    assert tokens is not None
    assert text_of(tokenizer, tokens) == text


def test_neither_special_tokens_nor_those_beyond_the_tokenizer_are_allowed(
    tokenizer: PreTrainedTokenizerFast, grammars: CompiledGrammars
) -> None:
    match = start(grammars, StructuredOutputsParams(regex="(.|\n)+"))
    assert not {*tokenizer.all_special_ids, *range(len(tokenizer), len(tokenizer) + 64)} & set(allowed(match))
    match.advance(allowed(match)[-1])
    assert len(match.allowed) % 4 == 0


def test_a_vocabulary_smaller_than_the_tokenizers_is_never_left(tokenizer: PreTrainedTokenizerFast) -> None:
    size = 290
    match = start(grammars_of(tokenizer, size), StructuredOutputsParams(regex="[a-z0-9]{20}"))
    assert len(match.allowed) == 320 // 8


def test_a_tokenizer_that_cannot_be_read_is_an_error_of_the_request_alone() -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    unread = PreTrainedTokenizerFast(tokenizer_object=words)  # type: ignore[no-untyped-call]  # it has no types
    grammars = grammars_of(unread, 2)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"structured outputs cannot read this model's tokenizer|cannot be used"):
            start(grammars, StructuredOutputsParams(regex="x+"))


@pytest.mark.parametrize("num_more", [0, 1, 37])
def test_a_tokenizer_without_an_end_has_forms_too(num_more: int) -> None:
    tokenizer = byte_level_tokenizer()
    end = tokenizer.eos_token_id
    tokenizer.eos_token = None
    vocab_size = len(tokenizer) + num_more
    # the model has an end of its own, which generation_config.json names
    grammars = CompiledGrammars(lambda: vocabulary_of(tokenizer, vocab_size), vocab_size, (end,))
    match = start(grammars, StructuredOutputsParams(regex="a{2}b?"))
    a, b = tokenizer.convert_tokens_to_ids(["a", "b"])
    assert b not in allowed(match)
    for _ in range(2):
        assert end not in allowed(match)
        match.advance(a)
    assert allowed(match) == sorted([b, end])
    assert tokenizer.eos_token_id is None
    assert len(tokenizer) == vocab_size - num_more
