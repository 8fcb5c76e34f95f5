"""Constrained answers among others: stops, seeds, several answers, preemption, caching, chunks, errors."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from quire_engine import LLM, SamplingParams, StructuredOutputsParams

pytestmark = pytest.mark.usefixtures("one_thread")

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "n": {"type": "integer", "maximum": 99, "minimum": 0}},
    "required": ["name", "n"],
    "additionalProperties": False,
}
JSON = StructuredOutputsParams(json=SCHEMA, disable_any_whitespace=True)
DIGITS = StructuredOutputsParams(regex=r"\d{4,6}")
PROMPTS = [f"prompt {i} " * (i % 5 + 1) for i in range(10)]


def constrained(i: int, **params: Any) -> SamplingParams:
    given = {"max_tokens": 80, "seed": i, "structured_outputs": JSON if i % 2 else DIGITS, **params}
    return SamplingParams(**given)


def is_whole(i: int, text: str) -> bool:
    if not i % 2:
        return re.fullmatch(r"\d{4,6}", text) is not None
    jsonschema.validate(json.loads(text), SCHEMA)
    return True


def test_constrained_rows_leave_the_free_ones_as_they_are(llm: LLM) -> None:
    free = [SamplingParams(max_tokens=30, seed=i, temperature=i % 2) for i in range(10)]
    before = llm.generate(PROMPTS, free, use_tqdm=False)
    mixed = [constrained(i) if i % 3 else free[i] for i in range(10)]
    after = llm.generate(PROMPTS, mixed, use_tqdm=False)
    for i in range(10):
        if i % 3 == 0:
            assert after[i].outputs[0].token_ids == before[i].outputs[0].token_ids
        else:
            assert is_whole(i, after[i].outputs[0].text)


def test_an_answer_is_the_same_alone_and_in_a_batch(llm: LLM) -> None:
    params = [constrained(i) for i in range(10)]
    together = [o.outputs[0].token_ids for o in llm.generate(PROMPTS, params, use_tqdm=False)]
    alone = [
        llm.generate(p, own, use_tqdm=False)[0].outputs[0].token_ids for p, own in zip(PROMPTS, params, strict=True)
    ]
    assert together == alone


def test_several_answers_to_a_prompt_each_follow_the_grammar(llm: LLM) -> None:
    answers = llm.generate("several", constrained(1, n=4), use_tqdm=False)[0].outputs
    assert all(is_whole(1, a.text) for a in answers)
    assert len({a.text for a in answers}) > 1


def test_preempted_and_chunked_requests_answer_as_others_do(random_model: Path, llm: LLM) -> None:
    long = StructuredOutputsParams(regex="([a-z][0-9]){20,30}")
    params = [constrained(i, structured_outputs=long) if i % 2 else constrained(i + 1) for i in range(10)]
    expected = [o.outputs[0].token_ids for o in llm.generate(PROMPTS, params, use_tqdm=False)]
    for caching in (True, False):
        tight = LLM(
            str(random_model),
            device="cpu",
            block_size=8,
            num_gpu_blocks_override=14,
            max_model_len=112,
            max_num_batched_tokens=16,
            enable_prefix_caching=caching,
            swap_space=0,
        )
        got = [o.outputs[0].token_ids for o in tight.generate(PROMPTS, params, use_tqdm=False)]
        assert got == expected
        assert tight.core.stats().num_preemptions > 0
        tight.core.check_integrity()


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [{"tensor_parallel_size": 2}, {"pipeline_parallel_size": 2}])
def test_ranks_that_share_a_model_answer_as_one_does(random_model: Path, llm: LLM, ranks: dict[str, Any]) -> None:
    params = [constrained(i) if i % 3 else SamplingParams(max_tokens=20, seed=i) for i in range(6)]
    expected = [o.outputs[0].token_ids for o in llm.generate(PROMPTS[:6], params, use_tqdm=False)]
    shared = LLM(str(random_model), device="cpu", block_size=8, num_gpu_blocks_override=1000, **ranks)
    try:
        assert [o.outputs[0].token_ids for o in shared.generate(PROMPTS[:6], params, use_tqdm=False)] == expected
    finally:
        shared.core.close()


def test_the_end_token_comes_only_where_the_grammar_may_end(llm: LLM) -> None:
    eos = llm.info.eos_token_ids[0]
    wanted = StructuredOutputsParams(regex=r"\d+")
    lengths = set()
    for seed in range(12):
        params = SamplingParams(max_tokens=40, seed=seed, logit_bias={eos: 2.0}, structured_outputs=wanted)
        answer = llm.generate("end", params, use_tqdm=False)[0].outputs[0]
        assert answer.token_ids.index(eos) == len(answer.token_ids) - 1 > 0
        assert re.fullmatch(r"\d+", answer.text, re.ASCII)
        lengths.add(len(answer.token_ids))
    assert len(lengths) > 1


def test_an_answer_that_cannot_go_on_ends_with_all_its_text_and_no_end_token(llm: LLM) -> None:
    for ignore_eos in (True, False):
        params = SamplingParams(
            temperature=0.0, ignore_eos=ignore_eos, structured_outputs=StructuredOutputsParams(choice=["abc", "abd"])
        )
        answer = llm.generate("end", params, use_tqdm=False)[0].outputs[0]
        assert answer.text in ("abc", "abd")
        assert (answer.finish_reason, answer.stop_reason) == ("stop", None)
        assert llm.get_tokenizer().decode(answer.token_ids) == answer.text


def test_min_tokens_holds_the_end_back_and_gives_way_to_a_grammar_that_ends(llm: LLM) -> None:
    eos = llm.info.eos_token_ids[0]
    params = SamplingParams(
        max_tokens=60, min_tokens=20, logit_bias={eos: 50.0}, structured_outputs=StructuredOutputsParams(regex="[ab]+")
    )
    assert len(llm.generate("min", params, use_tqdm=False)[0].outputs[0].token_ids) == 21
    params = SamplingParams(max_tokens=60, min_tokens=20, structured_outputs=StructuredOutputsParams(regex="[ab]{1,3}"))
    answer = llm.generate("min", params, use_tqdm=False)[0].outputs[0]
    assert answer.finish_reason == "stop"
    assert re.fullmatch("[ab]{1,3}", answer.text)


def test_stop_strings_and_stop_tokens_cut_an_answer(llm: LLM) -> None:
    wanted = StructuredOutputsParams(regex="a{3}b{3}c{3}")
    answer = llm.generate("stop", SamplingParams(stop=["bb"], structured_outputs=wanted), use_tqdm=False)[0].outputs[0]
    assert (answer.text, answer.finish_reason, answer.stop_reason) == ("aaa", "stop", "bb")
    tool = llm.get_tokenizer().convert_tokens_to_ids("<tool>")
    params = SamplingParams(
        max_tokens=60,
        stop_token_ids=[tool],
        ignore_eos=True,
        logit_bias={tool: 50.0},
        structured_outputs=StructuredOutputsParams(regex="[ab]{3}[ab]*"),
    )
    answer = llm.generate("stop", params, use_tqdm=False)[0].outputs[0]
    assert answer.stop_reason == tool
    assert re.fullmatch("[ab]{3}[ab]*", answer.text)


def test_forbidden_tokens_give_way_to_a_grammar_that_leaves_nothing_else(llm: LLM) -> None:
    params = SamplingParams(bad_words=["yes"], structured_outputs=StructuredOutputsParams(choice=["yes"]))
    assert llm.generate("bad", params, use_tqdm=False)[0].outputs[0].text == "yes"


def test_where_allowed_tokens_and_a_grammar_share_nothing_the_request_ends_with_an_error(llm: LLM) -> None:
    allowed = llm.get_tokenizer().encode("xyz")
    for temperature in (0.0, 1.0):
        params = SamplingParams(temperature=temperature, allowed_token_ids=allowed, structured_outputs=DIGITS)
        with pytest.raises(
            ValueError, match="structured_outputs: none of the tokens that the request allows continues"
        ):
            llm.generate("none", params, use_tqdm=False)
    assert is_whole(0, llm.generate("next", constrained(0), use_tqdm=False)[0].outputs[0].text)
    llm.core.check_integrity()


def test_logprobs_are_those_of_the_model_without_the_grammar(llm: LLM) -> None:
    wanted = StructuredOutputsParams(regex="[0-9]x")
    params = SamplingParams(temperature=0.0, logprobs=1, max_tokens=1, structured_outputs=wanted)
    prompt = {"prompt_token_ids": llm.get_tokenizer().encode("raw")}
    constrained_first = llm.generate([prompt], params, use_tqdm=False)[0].outputs[0]  # type: ignore[list-item]  # lists are invariant
    free = SamplingParams(temperature=0.0, logprobs=256, max_tokens=1)
    free_first = llm.generate([prompt], free, use_tqdm=False)[0].outputs[0]  # type: ignore[list-item]  # lists are invariant
    assert constrained_first.logprobs is not None
    assert free_first.logprobs is not None
    token = constrained_first.token_ids[0]
    assert token != free_first.token_ids[0]
    assert constrained_first.logprobs[0][token].logprob == pytest.approx(
        free_first.logprobs[0][token].logprob, abs=1e-5
    )


def test_one_bad_grammar_in_a_batch_is_an_error_and_the_next_call_works(llm: LLM) -> None:
    bad = SamplingParams(structured_outputs=StructuredOutputsParams(regex="("))
    with pytest.raises(ValueError, match=r"structured_outputs\.regex cannot be used: unclosed group"):
        llm.generate(["a", "b"], [constrained(1), bad], use_tqdm=False)
    assert not llm.core.has_work()
    assert is_whole(1, llm.generate("c", constrained(1), use_tqdm=False)[0].outputs[0].text)
    llm.core.check_integrity()
