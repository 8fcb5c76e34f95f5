"""Forms behind reasoning: the model thinks as it likes, and its answer has the form all the same."""

from __future__ import annotations

import random
import re

import pytest

from quire_engine import LLM, SamplingParams, StructuredOutputsParams
from quire_engine.core.grammar import GrammarState
from quire_engine.structured.grammars import CompiledGrammars
from quire_engine.structured.vocabulary import vocabulary_of
from quire_engine.structured_outputs import AfterReasoning
from tests.engine.structured.conftest import VOCAB_SIZE, byte_level_tokenizer

TOKENIZER = byte_level_tokenizer()
VOCABULARY = vocabulary_of(TOKENIZER, VOCAB_SIZE)
GRAMMARS = CompiledGrammars(lambda: VOCABULARY, VOCAB_SIZE, (0,))
SPECIAL = "<tool>"  # a special token, the others are spelled
FORMS = [
    ({"choice": ["yes", "no"]}, r"yes|no"),
    ({"regex": r"[0-9]{2}"}, r"[0-9]{2}"),
    ({"json": {"type": "array", "items": {"enum": [1, "a"]}, "maxItems": 2}}, r'\[\s*((1|"a")(\s*,\s*(1|"a"))?\s*)?\]'),
    ({"grammar": 'root ::= "(" ("a" | "b") ")"'}, r"\([ab]\)"),
    (
        {"structural_tag": {"type": "structural_tag", "format": {"type": "const_string", "value": "yes"}}},
        r"yes",
    ),
    ({"calls": [("f", '{"const": {"a": 1}}')], "one_call": True}, r'\[\{"name": "f", "parameters": \{\s*"a".*\}\}\]'),
]


def start(form: dict[str, object], tags: AfterReasoning) -> GrammarState:
    wanted = StructuredOutputsParams(**form, after_reasoning=tags)  # type: ignore[arg-type]  # mixed values
    pending = GRAMMARS.compile(SamplingParams(structured_outputs=wanted))
    pending.wait(60)
    return pending.start()


def allowed(state: GrammarState) -> list[int]:
    return [i for i in range(len(TOKENIZER)) if state.allowed[i // 8] >> i % 8 & 1]


def write(state: GrammarState, text: str) -> list[int]:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    for token in ids:
        assert token in allowed(state)
        state.advance(token)
    return ids


def wander(state: GrammarState, chance: random.Random, most: int = 200) -> list[int]:
    """Tokens at random, to the end of the answer."""
    ids: list[int] = []
    while not state.finished and len(ids) < most:
        token = chance.choice(allowed(state))
        if token == 0:
            return ids
        state.advance(token)
        ids.append(token)
    assert state.finished
    return ids


@pytest.mark.parametrize(("form", "pattern"), FORMS, ids=lambda f: next(iter(f)) if isinstance(f, dict) else "")
@pytest.mark.parametrize("end", ["</think>", SPECIAL])
@pytest.mark.parametrize("begun", [True, False])
def test_what_follows_reasoning_has_the_form(form: dict[str, object], pattern: str, end: str, begun: bool) -> None:
    for seed in range(6):
        chance = random.Random(seed)
        state = start(form, AfterReasoning("<think>", end, begun))
        if not begun:
            write(state, "<think>")
        for _ in range(chance.randrange(4)):
            write(state, chance.choice(["Why? ", "{", "a < b </th", "<thi", "</think", "é", "yes"]))
        answer = write(state, end)[:0] + wander(state, chance)
        assert re.fullmatch(pattern, TOKENIZER.decode(answer).lstrip(), re.DOTALL), TOKENIZER.decode(answer)


def test_an_answer_may_come_without_reasoning_where_none_has_begun() -> None:
    for seed in range(6):
        state = start({"choice": ["yes", "no"]}, AfterReasoning("<think>", "</think>", False))
        first = [i for i in allowed(state) if TOKENIZER.decode([i])[0] in "yn"]
        state.advance(first[seed % len(first)])
        wander(state, random.Random(seed))


def test_reasoning_cannot_end_the_answer_and_costs_no_masks() -> None:
    state = start({"choice": ["yes"]}, AfterReasoning("<think>", "</think>", True))
    free = state.allowed
    assert not free[0] & 1
    assert len(allowed(state)) == len(TOKENIZER) - 1
    write(state, "Well, é")
    assert state.allowed is free
    write(state, "<")
    assert state.allowed is not free  # it may be the tag's beginning
    write(state, "b")
    assert state.allowed is free


def test_a_token_that_ends_the_tag_goes_on_as_the_form_says() -> None:
    state = start({"choice": ["yes"]}, AfterReasoning("<", 'me"', True))  # tokens such as `": "` begin in the tag
    ids = TOKENIZER.encode("me", add_special_tokens=False)
    for token in ids:
        state.advance(token)
    beyond = [i for i in allowed(state) if TOKENIZER.decode([i]).startswith('"') and len(TOKENIZER.decode([i])) > 1]
    assert all(re.fullmatch(r'"\s*(y(es?)?)?', TOKENIZER.decode([i])) for i in beyond)


def test_a_model_s_answer_has_the_form_behind_what_it_thought(llm: LLM) -> None:
    tags = AfterReasoning("<think>", SPECIAL, True)
    (tag,) = TOKENIZER.encode(SPECIAL, add_special_tokens=False)
    params = SamplingParams(
        max_tokens=400,
        seed=3,
        logit_bias={tag: 3.0},
        skip_special_tokens=False,
        structured_outputs=StructuredOutputsParams(choice=["yes", "no"], after_reasoning=tags),
    )
    (output,) = llm.generate("Well?", params, use_tqdm=False)
    thought, answer = output.outputs[0].text.split(SPECIAL, 1)
    assert thought
    assert answer.lstrip() in ("yes", "no")
    assert output.outputs[0].finish_reason == "stop"
