"""Logprobs, echo and the choice among answers, through the official client, in OpenAI's shapes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from tests.engine.server.conftest import Server, StartServer

HELLO = [{"role": "user", "content": "Hello!"}]
PROMPT = "Return a string that"


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> PreTrainedTokenizerBase:
    made: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tiny_model_dir)
    return made


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(tiny_model_dir).float()


def reference(model: LlamaForCausalLM, ids: list[int]) -> torch.Tensor:
    """The log-probabilities of what follows each token, [len(ids), vocab_size]."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float().log_softmax(-1)


def rounded_all(values: list[Any]) -> list[Any]:
    """Floats, alone or in dictionaries, to three digits."""

    def rounded(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: rounded(inner) for key, inner in value.items()}
        return round(value, 3) + 0.0 if isinstance(value, float) else value

    return [rounded(value) for value in values]


def complete(server: Server, **options: Any) -> Any:
    asked: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "temperature": 0, "max_tokens": 12} | options
    return server.client().completions.create(**asked)


def test_a_completions_logprobs_equal_the_references(
    server: Server, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase
) -> None:
    choice = complete(server, logprobs=3).choices[0]
    prompt = tokenizer.encode(PROMPT, add_special_tokens=False)
    answer = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, len(prompt) :].tolist()
    expected = reference(model, prompt + answer)[len(prompt) - 1 : -1]
    own = choice.logprobs
    assert "".join(own.tokens) == choice.text + tokenizer.eos_token
    assert own.token_logprobs == pytest.approx(
        [row[t].item() for row, t in zip(expected, answer, strict=True)], abs=1e-3
    )
    for likeliest, row in zip(own.top_logprobs, expected, strict=True):
        assert sorted(likeliest.values()) == pytest.approx(row.topk(3).values.tolist()[::-1], abs=1e-3)
    assert own.text_offset[-1] == len(choice.text)
    for token, offset in zip(own.tokens[:-1], own.text_offset, strict=False):
        assert choice.text[offset : offset + len(token)] == token


def test_an_echo_begins_with_the_prompt_and_its_logprobs(
    server: Server, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase
) -> None:
    plain = complete(server, max_tokens=6).choices[0].text
    choice = complete(server, max_tokens=6, echo=True, logprobs=2).choices[0]
    prompt = tokenizer.encode(PROMPT, add_special_tokens=False)
    assert choice.text == PROMPT + plain
    own = choice.logprobs
    assert own.token_logprobs[0] is own.top_logprobs[0] is None
    expected = reference(model, prompt)
    told = own.token_logprobs[1 : len(prompt)]
    assert told == pytest.approx([row[t].item() for row, t in zip(expected, prompt[1:], strict=False)], abs=1e-3)
    assert "".join(own.tokens) == choice.text
    for token, offset in zip(own.tokens, own.text_offset, strict=True):
        assert choice.text[offset : offset + len(token)] == token


def test_an_echo_of_no_tokens_scores_the_prompt(server: Server, tokenizer: PreTrainedTokenizerBase) -> None:
    prompts = [tokenizer.encode(text, add_special_tokens=False) for text in (PROMPT, "The class")]
    answer = complete(server, prompt=prompts, echo=True, logprobs=1, max_tokens=0)
    assert [c.text for c in answer.choices] == [PROMPT, "The class"]
    assert [len(c.logprobs.tokens) for c in answer.choices] == [len(p) for p in prompts]
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 0


@pytest.mark.parametrize("options", [{}, {"echo": True}, {"echo": True, "max_tokens": 0}, {"logprobs": None, "n": 2}])
def test_streamed_pieces_make_up_the_whole(server: Server, options: dict[str, Any]) -> None:
    options = {"logprobs": 2, "echo": False, "seed": 1, "temperature": 1.0} | options
    whole = complete(server, **options)
    pieces: dict[int, list[Any]] = {}
    for chunk in complete(server, stream=True, **options):
        pieces.setdefault(chunk.choices[0].index, []).append(chunk.choices[0])
    for choice in whole.choices:
        mine = pieces[choice.index]
        assert "".join(p.text for p in mine) == choice.text
        assert mine[-1].finish_reason == choice.finish_reason
        for name in ("tokens", "text_offset", "token_logprobs", "top_logprobs") if choice.logprobs else ():
            # prompts come from the cache, or not, in other batches: the last digits may differ
            joined = rounded_all([x for p in mine for x in getattr(p.logprobs, name)])
            assert joined == rounded_all(getattr(choice.logprobs, name))


@pytest.mark.parametrize("stream", [False, True])
def test_a_chats_logprobs_have_tokens_and_their_bytes(server: Server, stream: bool) -> None:
    asked: Any = {"model": "tiny", "messages": HELLO, "temperature": 0, "max_tokens": 8}
    asked |= {"logprobs": True, "top_logprobs": 2, "stream": stream}
    answer = server.client().chat.completions.create(**asked)
    if stream:
        choices = [chunk.choices[0] for chunk in answer]
        text = "".join(c.delta.content or "" for c in choices)
        content = [entry for c in choices if c.logprobs for entry in c.logprobs.content]
    else:
        text, content = answer.choices[0].message.content, answer.choices[0].logprobs.content
    assert len(content) == 8
    assert b"".join(bytes(entry.bytes) for entry in content).decode() == text
    for entry in content:
        assert entry.token == bytes(entry.bytes).decode(errors="replace")
        assert [t.logprob for t in entry.top_logprobs] == sorted((t.logprob for t in entry.top_logprobs), reverse=True)
        assert entry.top_logprobs[0].token == entry.token  # greedy
        assert entry.logprob == entry.top_logprobs[0].logprob <= 0
    without = server.client().chat.completions.create(**asked | {"top_logprobs": None, "stream": False})
    assert all(entry.top_logprobs == [] for entry in without.choices[0].logprobs.content)


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_prompt_logprobs_have_vllms_shape(server: Server, path: str) -> None:
    body = {"prompt": PROMPT, "messages": HELLO, "max_tokens": 1, "prompt_logprobs": 1}
    answer = httpx.post(f"{server.url}/v1/{path}", json=body).json()
    made = answer["choices"][0]["prompt_logprobs"] if path == "completions" else answer["prompt_logprobs"]
    assert len(made) == answer["usage"]["prompt_tokens"]
    assert made[0] is None
    for row in made[1:]:
        assert 1 <= len(row) <= 2
        assert min(entry["rank"] for entry in row.values()) == 1
        assert all(entry["logprob"] <= 0 and entry["decoded_token"] for entry in row.values())


def test_the_best_answers_are_those_of_the_highest_logprobs(server: Server) -> None:
    options = {"seed": 5, "temperature": 1.0, "prompt": [PROMPT, "The class"]}
    every = complete(server, n=5, logprobs=0, **options).choices
    best = complete(server, n=2, extra_body={"best_of": 5}, **options)
    expected = []
    for mine in (every[:5], every[5:]):
        expected += sorted(mine, key=lambda c: -sum(c.logprobs.token_logprobs))[:2]
    assert [c.text for c in best.choices] == [c.text for c in expected]
    assert [c.index for c in best.choices] == [0, 1, 2, 3]
    assert all(c.logprobs is None for c in best.choices)


def test_what_is_told_of_a_token_does_not_depend_on_temperature_and_masks(server: Server) -> None:
    raw = complete(server, logprobs=1, max_tokens=1).choices[0].logprobs
    token, likeliest = raw.tokens[0], raw.token_logprobs[0]
    bent = complete(server, logprobs=1, max_tokens=1, temperature=2, extra_body={"bad_words": [token]}).choices[0]
    assert bent.logprobs.tokens[0] != token
    assert bent.logprobs.top_logprobs[0][token] == pytest.approx(likeliest, abs=1e-4)
    assert bent.logprobs.token_logprobs[0] < likeliest


def test_biases_allowed_tokens_and_penalties_change_the_text(
    server: Server, tokenizer: PreTrainedTokenizerBase
) -> None:
    (token,) = tokenizer.encode("!", add_special_tokens=False)
    biased = complete(server, logit_bias={str(token): 100}, max_tokens=3)
    allowed = complete(server, extra_body={"allowed_token_ids": [token], "ignore_eos": True}, max_tokens=3)
    assert biased.choices[0].text == allowed.choices[0].text == "!!!"
    penalized = complete(server, extra_body={"repetition_penalty": 5.0, "ignore_eos": True}, max_tokens=40)
    ids = tokenizer.encode(PROMPT + penalized.choices[0].text, add_special_tokens=False)
    assert len(set(ids)) > 0.9 * len(ids)


def test_a_salt_keeps_prompts_apart_and_a_long_prompt_is_cut_at_its_front(server: Server) -> None:
    prompt = "the words of a prompt that is long enough for a page or two " * 4

    def cached(**fields: Any) -> int:
        usage = complete(server, prompt=prompt, max_tokens=1, extra_body=fields).usage
        return int(usage.prompt_tokens_details.cached_tokens)

    assert cached(cache_salt="a") == 0
    assert cached(cache_salt="a") > 0
    assert cached(cache_salt="b") == 0
    assert (
        complete(server, prompt=prompt, max_tokens=1, extra_body={"truncate_prompt_tokens": 7}).usage.prompt_tokens == 7
    )
    long = "word " * 5000
    assert complete(server, prompt=long, extra_body={"truncate_prompt_tokens": -1}).usage.total_tokens == 2048


def test_priorities_are_taken_where_the_policy_says_so(start_server: StartServer) -> None:
    server = start_server("--scheduling-policy=priority", "--max-num-seqs=1")
    assert complete(server, max_tokens=2, extra_body={"priority": -5}).choices[0].finish_reason == "length"


def test_no_logprob_is_infinite(server: Server) -> None:
    answer = complete(server, logprobs=20, temperature=1, logit_bias={"5": -100})
    values = [v for row in answer.choices[0].logprobs.top_logprobs for v in row.values()]
    assert all(math.isfinite(v) for v in values)
    with pytest.raises(openai.BadRequestError, match="logprobs"):
        complete(server, logprobs=21)
