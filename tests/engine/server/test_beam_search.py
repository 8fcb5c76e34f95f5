"""Beam searches over HTTP are the library's."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from quire_engine import LLM, BeamSearchParams
from quire_engine.server.protocol.completions import CompletionRequest
from tests.engine.server.conftest import Server

PROMPTS = ["Return the", "The class of"]


@pytest.fixture(scope="module")
def expected(tiny_model_dir: Path) -> list[list[str]]:
    """What `LLM.beam_search` finds, without the prompts."""
    llm = LLM(str(tiny_model_dir), device="cpu", kv_cache_memory_bytes=64 << 20)
    tokenizer = llm.get_tokenizer()
    answers = []
    for output in llm.beam_search(PROMPTS, BeamSearchParams(beam_width=3, max_tokens=8, length_penalty=0.5)):
        prompts = [tokenizer.encode(p) for p in PROMPTS]
        ids = next(p for p in prompts if output.sequences[0].tokens[: len(p)] == p)
        answers.append([tokenizer.decode(s.tokens[len(ids) :], skip_special_tokens=True) for s in output.sequences])
    return answers


def body(**changes: object) -> dict[str, object]:
    return {"prompt": PROMPTS, "max_tokens": 8, "use_beam_search": True, "length_penalty": 0.5, "n": 3} | changes


def test_each_prompts_best_beams_come_in_their_order(server: Server, expected: list[list[str]]) -> None:
    answer = httpx.post(f"{server.url}/v1/completions", json=body(), timeout=60).json()
    texts = [choice["text"] for choice in answer["choices"]]
    assert [choice["index"] for choice in answer["choices"]] == [*range(6)]
    assert [texts[:3], texts[3:]] == expected
    assert answer["usage"]["completion_tokens"] <= 6 * 8


def test_the_best_of_more_beams_can_be_streamed_when_they_are_there(server: Server, expected: list[list[str]]) -> None:
    wanted = body(n=1, best_of=3, stream=True)
    text = httpx.post(f"{server.url}/v1/completions", json=wanted, timeout=60).text
    assert text.count('"finish_reason":"') == 2
    assert text.rstrip().endswith("[DONE]")


def test_chats_are_searched_too(server: Server) -> None:
    wanted = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 6, "use_beam_search": True, "n": 2}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=wanted, timeout=60).json()
    assert len({choice["message"]["content"] for choice in answer["choices"]}) == 2


def test_beams_end_with_a_stop_string_and_are_held_to_a_form(server: Server) -> None:
    changes = {"structured_outputs": {"regex": "[a-z]+;[a-z]*"}, "stop": [";"], "max_tokens": 16, "prompt": "Return"}
    answer = httpx.post(f"{server.url}/v1/completions", json=body(**changes), timeout=60).json()
    assert len(answer["choices"]) == 3
    for choice in answer["choices"]:
        assert re.fullmatch("[a-z]+", choice["text"])
        stopped = choice["stop_reason"] == ";"
        assert choice["finish_reason"] == ("stop" if stopped else "length")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bad_words": ["x"]}, "bad_words does not work with use_beam_search"),
        ({"logprobs": 1}, "logprobs does not work with use_beam_search"),
        ({"length_penalty": 11}, "length_penalty is 11"),
        ({"early_stopping": "soon"}, "early_stopping"),
        ({"best_of": 2}, "best_of is 2: it must be between n, 3"),
    ],
)
def test_what_does_not_go_with_beams_is_a_400_that_names_it(
    server: Server, changes: dict[str, object], message: str
) -> None:
    answer = httpx.post(f"{server.url}/v1/completions", json=body(**changes), timeout=60)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


def test_what_the_model_suggests_for_sampling_does_not_stand_in_the_way() -> None:
    request = CompletionRequest(prompt="a", use_beam_search=True, n=2)
    defaults = {"repetition_penalty": 1.05, "top_p": 0.8}
    params = request.sampling_params(4, None, defaults)
    assert (params.repetition_penalty, params.top_p) == (1.0, 0.8)
    with pytest.raises(ValueError, match="repetition_penalty does not work with use_beam_search"):
        request.model_copy(update={"repetition_penalty": 1.05}).sampling_params(4, None, defaults)
