"""Beams that are held to a form, or ended by what they say, are those that transformers finds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from quire_engine import LLM, SamplingParams, StructuredOutputsParams
from quire_engine.core.grammar import GrammarState
from quire_engine.structured.compiler import allowed_text
from quire_engine.structured.grammars import CompiledGrammars
from quire_engine.structured.vocabulary import vocabulary_of
from tests.engine.structured.conftest import VOCAB_SIZE

if TYPE_CHECKING:
    from llguidance import LLMatcher

PROMPTS = ["Ada", "{", "[1", "tags tags", "x"]
EOS, PAD = 0, VOCAB_SIZE - 1


@pytest.fixture(scope="module")
def model(random_model: Path) -> PreTrainedModel:
    transformers.utils.logging.disable_progress_bar()
    found: PreTrainedModel = LlamaForCausalLM.from_pretrained(random_model, dtype=torch.float32)
    return found.eval()


@pytest.fixture(scope="module")
def tokenizer(llm: LLM) -> PreTrainedTokenizerBase:
    found: PreTrainedTokenizerBase = llm.get_tokenizer()
    return found


def searched(width: int, **params: Any) -> SamplingParams:
    return SamplingParams(n=width, use_beam_search=True, **{"max_tokens": 12, **params})


def found(llm: LLM, params: SamplingParams) -> list[list[list[int]]]:
    return [[a.token_ids for a in r.outputs] for r in llm.generate(PROMPTS, params, use_tqdm=False)]


def expected(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    width: int,
    allowed: Callable[[list[int]], list[int]] | None = None,
    **options: Any,
) -> list[list[list[int]]]:
    """What transformers finds. `allowed` are the tokens that may follow an output."""
    answers = []
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer.encode(prompt)])
        length = ids.shape[1]
        if allowed is not None:
            options["prefix_allowed_tokens_fn"] = lambda _, sent, length=length: allowed(sent[length:].tolist())
        out = model.generate(  # type: ignore[operator]  # of a class that mixes it in
            ids,
            attention_mask=torch.ones_like(ids),
            num_beams=width,
            num_return_sequences=width,
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=EOS,
            pad_token_id=PAD,
            tokenizer=tokenizer,
            **options,
        )
        answers.append([[token for token in row[length:].tolist() if token != PAD] for row in out])
    return answers


@pytest.mark.parametrize("regex", ["[0-9]*", "([a-z]{2}[,.])*", '("[a-z]*" ?)+'])
def test_beams_of_a_form_are_those_of_transformers(
    llm: LLM, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, regex: str
) -> None:
    params = searched(3, structured_outputs=StructuredOutputsParams(regex=regex))
    pending = CompiledGrammars(lambda: vocabulary_of(tokenizer, VOCAB_SIZE), VOCAB_SIZE, (EOS,)).compile(params)
    pending.wait(60)
    start = pending.start()

    def allowed(output: list[int]) -> list[int]:
        state = start.fork()
        for token in output:
            if token not in tokens_of(state):
                return [EOS]  # of a beam that only fills the tensor
            if token != EOS:
                state.advance(token)
        return tokens_of(state)

    assert found(llm, params) == expected(model, tokenizer, 3, allowed)


def tokens_of(state: GrammarState) -> list[int]:
    mask = state.allowed
    assert mask is not None
    return [token for token in range(VOCAB_SIZE) if mask[token // 8] >> token % 8 & 1]


@pytest.mark.parametrize("stop", [["e"], ["a", "1,"], ['"name', "0"]], ids=str)
def test_beams_with_stop_strings_are_those_of_transformers(
    llm: LLM, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stop: list[str]
) -> None:
    wanted = expected(model, tokenizer, 3, stop_strings=stop)
    assert found(llm, searched(3, stop=stop)) == wanted
    assert any(len(beam) < 12 for beams in wanted for beam in beams)


def test_what_a_stop_string_ends_is_cut_before_it_and_says_so(llm: LLM) -> None:
    stopped = 0
    for result in llm.generate(PROMPTS, searched(4, stop=["e", "1"]), use_tqdm=False):
        for answer in result.outputs:
            assert "e" not in answer.text
            if answer.stop_reason in ("e", "1"):
                stopped += 1
                assert answer.finish_reason == "stop"
                assert str(answer.stop_reason) in llm.get_tokenizer().decode(answer.token_ids)
    assert stopped > 0


def test_beams_have_a_form_and_end_with_a_stop_string(llm: LLM) -> None:
    form = StructuredOutputsParams(regex="[a-z]{4,}1[0-9]*")
    for result in llm.generate(PROMPTS, searched(3, structured_outputs=form, stop=["1"], max_tokens=30)):
        for answer in result.outputs:
            assert re.fullmatch("[a-z]*", answer.text)
            assert answer.finish_reason == ("stop" if answer.stop_reason else "length")


def test_whole_answers_of_beams_are_json_of_their_schema(llm: LLM) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 99, "minimum": 0}}}
    schema |= {"required": ["n"], "additionalProperties": False}
    form = StructuredOutputsParams(json=schema, disable_any_whitespace=True)
    for result in llm.generate(PROMPTS, searched(4, structured_outputs=form, max_tokens=30), use_tqdm=False):
        texts = [answer.text for answer in result.outputs]
        assert len(set(texts)) == len(texts) == 4
        for text in texts:
            assert 0 <= json.loads(text)["n"] <= 99
    llm.core.check_integrity()


def test_a_form_with_fewer_answers_than_beams_gives_those_that_there_are(llm: LLM) -> None:
    form = StructuredOutputsParams(choice=["yes", "no"])
    for result in llm.generate(PROMPTS, searched(4, structured_outputs=form), use_tqdm=False):
        texts = [answer.text for answer in result.outputs]
        assert set(texts) == {"yes", "no"}


def test_no_more_masks_are_computed_than_beams_go_on_where_most_tokens_end_the_answer(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_masks = 0

    def counted(matcher: LLMatcher, end_tokens: tuple[int, ...]) -> bytearray:
        nonlocal num_masks
        num_masks += 1
        return allowed_text(matcher, end_tokens)

    monkeypatch.setattr("quire_engine.structured.match.allowed_text", counted)
    form = StructuredOutputsParams(regex="[ab]{0,200}[c-z0-9]")
    params = searched(8, structured_outputs=form, max_tokens=6, early_stopping="never")
    (result,) = llm.generate(PROMPTS[:1], params, use_tqdm=False)
    assert all(re.fullmatch("[ab]*[c-z0-9]?", answer.text) for answer in result.outputs)
    assert 1 < num_masks <= 1 + 8 * 6
