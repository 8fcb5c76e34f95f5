"""Whatever a client sends wrong comes back as OpenAI's error body that says what to change."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine.server.conftest import Server, StartServer

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hello!"}]}
COMPLETION = {"model": "tiny", "prompt": "Hello"}


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({**CHAT, "temperature": -1}, "temperature", "between 0 and 100"),
        ({**CHAT, "top_p": 0}, "top_p", "above 0"),
        ({**CHAT, "min_p": 2}, "min_p", "between 0 and 1"),
        ({**CHAT, "top_k": -7}, "top_k", "at least 1"),
        ({**CHAT, "n": 0}, "n", "n is 0: Input should be greater than or equal to 1"),
        ({**CHAT, "n": 1000}, "n", "n is 1000: Input should be less than or equal to 128"),
        ({**CHAT, "max_tokens": 0}, "max_tokens", "max_tokens is 0: Input should be greater than or equal to 1"),
        ({**CHAT, "presence_penalty": 2.5}, "presence_penalty", "between -2 and 2"),
        ({**CHAT, "frequency_penalty": -3}, "frequency_penalty", "between -2 and 2"),
        ({**CHAT, "repetition_penalty": 0}, "repetition_penalty", "between 0.01 and 100"),
        ({**CHAT, "logit_bias": {"5": 101}}, "logit_bias", "between -100 and 100"),
        ({**CHAT, "logit_bias": {"5000": 1}}, "logit_bias", "ids end at 2047"),
        ({**CHAT, "logit_bias": {"-1": 1}}, "logit_bias", "ids end at 2047"),
        ({**CHAT, "logit_bias": {"five": 1}}, "logit_bias.five", "logit_bias.five: Input should be a valid integer"),
        (
            {**CHAT, "logit_bias": {str(i): 1 for i in range(2000)}},
            "logit_bias",
            "2000 tokens: it must be at most 1024",
        ),
        ({**CHAT, "allowed_token_ids": []}, "allowed_token_ids", "at least one token"),
        ({**CHAT, "allowed_token_ids": [2048]}, "allowed_token_ids", "ids end at 2047"),
        ({**CHAT, "allowed_token_ids": [5] * 40_000, "n": 128}, None, "4194304"),
        ({**CHAT, "bad_words": ["fine", " "]}, "bad_words", "not all spaces"),
        ({**CHAT, "bad_words": ["x" * 300]}, "bad_words", "1 to 256 characters"),
        ({**CHAT, "best_of": 1, "n": 2}, "best_of", "between n, 2, and 128"),
        ({**CHAT, "best_of": 500}, "best_of", "best_of is 500: Input should be less than or equal to 128"),
        ({**CHAT, "top_logprobs": 3}, None, "set logprobs to true"),
        (
            {**CHAT, "logprobs": True, "top_logprobs": 21},
            "top_logprobs",
            "top_logprobs is 21: Input should be less than or equal to 20",
        ),
        ({**CHAT, "cache_salt": ""}, "cache_salt", "at least 1 character"),
        ({**CHAT, "truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "at least 1, or -1"),
        ({**CHAT, "max_tokens": 10**6}, "max_tokens", "2048"),
        ({**CHAT, "max_tokens": 10**6}, "max_tokens", "This model's maximum context length is 2048 tokens. However, "),
        ({**CHAT, "max_completion_tokens": -5}, "max_completion_tokens", "max_completion_tokens is -5: Input should"),
        ({**CHAT, "echo": "perhaps"}, "echo", "echo is 'perhaps': Input should be a valid boolean"),
        ({**CHAT, "cache_salt": True}, "cache_salt", "cache_salt is true: Input should be a valid string"),
        ({**CHAT, "n": "x" * 100}, "n", "n: Input should be a valid integer"),
        ({**CHAT, "stop": ["a"] * 17}, "stop", "stop holds 17 strings: it may hold at most 16"),
        ({**CHAT, "tool_choice": "foo"}, "tool_choice", "tool_choice is 'foo': Input should be 'none'"),
        ({**CHAT, "tool_choice": {"type": "tool"}}, "tool_choice.type", "'function'"),
        ({**CHAT, "messages": []}, "messages", "at least 1 item"),
        ({"model": "tiny"}, "messages", "missing"),
        (
            {**CHAT, "messages": [{"role": "user", "content": 5}]},
            "messages.0.content",
            "messages.0.content is 5: Input",
        ),
        ({**CHAT, "stop": [""]}, "stop", "at least one character"),
        ({**CHAT, "seed": 2**80}, "seed", "64-bit"),
        ({**CHAT, "priority": 1}, "priority", "--scheduling-policy priority"),
        ({**CHAT, "tools": [{"type": "function"}]}, "tools.0.function", "tools.0.function is missing"),
        ({**CHAT, "stream_options": {"include_usage": True}}, None, "stream"),
        ({**CHAT, "continue_final_message": True, "add_generation_prompt": True}, None, "leave one out"),
        ({**CHAT, "chat_template": "{{ messages }}"}, None, "start the server with --chat-template"),
        ({**CHAT, "chat_template_kwargs": {"documents": []}}, "chat_template_kwargs", "sets documents"),
        (
            {**CHAT, "messages": [{"role": "user", "content": "word " * 5000}]},
            "messages",
            "This model's maximum context length is 2048 tokens, prompt and answer together. However, the prompt has",
        ),
    ],
)
def test_a_wrong_chat_is_a_400_that_names_field_and_limit(
    server: Server, body: dict[str, Any], param: str | None, says: str
) -> None:
    for stream in (False, True) if "stream_options" not in body and "best_of" not in body else (False,):
        answer = httpx.post(f"{server.url}/v1/chat/completions", json={**body, "stream": stream})
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert says in error["message"]
        assert error["code"] == 400
        if param is not None and param != "messages":
            assert error["param"] == param
            assert param.split(".")[0] in error["message"]


@pytest.mark.parametrize(
    ("prompt", "says"),
    [([], "prompt"), ("", "empty"), ([[]], "empty"), ([5000], "2047"), ([-1], "prompt"), ({"a": 1}, "prompt")],
)
def test_a_wrong_prompt_is_a_400(server: Server, prompt: object, says: str) -> None:
    answer = httpx.post(f"{server.url}/v1/completions", json={**COMPLETION, "prompt": prompt})
    assert answer.status_code == 400, answer.text
    assert says in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"max_tokens": 0}, "max_tokens is 0: it must be at least 1, or 0 with echo"),
        ({"logprobs": 21}, "logprobs is 21: Input should be less than or equal to 20"),
        ({"logprobs": -1}, "logprobs is -1: Input should be greater than or equal to 0"),
        ({"prompt_logprobs": 2, "stream": True}, "prompt_logprobs cannot be streamed"),
        ({"best_of": 3, "stream": True}, "best_of is 3"),
        ({"echo": True, "logprobs": 1, "n": 2, "stream": True}, "echo with logprobs"),
    ],
)
def test_what_completions_cannot_give_is_a_400(server: Server, fields: dict[str, Any], says: str) -> None:
    answer = httpx.post(f"{server.url}/v1/completions", json={**COMPLETION, **fields})
    assert answer.status_code == 400, answer.text
    assert says in answer.json()["error"]["message"]


@pytest.mark.parametrize("fields", [{"echo": None}, {"stream": True, "stream_options": {"include_usage": None}}])
def test_null_is_as_if_the_field_were_not_there(server: Server, fields: dict[str, Any]) -> None:
    answer = httpx.post(f"{server.url}/v1/completions", json={**COMPLETION, **fields})
    assert answer.status_code == 200, answer.text
    assert '"prompt_tokens"' not in answer.text or "stream" not in fields


def test_what_asks_by_other_methods_and_paths_as_of_vllm_is_answered(server: Server) -> None:
    assert httpx.post(f"{server.url}/ping").status_code == 200
    assert httpx.get(f"{server.url}/metrics/").status_code == 200


def test_an_unknown_model_is_a_404_that_names_the_served_ones(server: Server) -> None:
    with pytest.raises(openai.NotFoundError, match="tiny, small"):
        server.client().chat.completions.create(model="gpt-7", messages=CHAT["messages"])  # type: ignore[call-overload]  # plain dicts, as they are sent


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("POST", "/v1/chat/completions", b"{not json", 400),
        ("POST", "/v1/chat/completions", b"\xff\xfe\x00", 400),
        ("POST", "/v1/chat/completions", b"[]", 400),
        ("POST", "/v1/chat/completions", b"", 400),
        ("GET", "/v1/chat/completions", None, 405),
        ("GET", "/nothing/here", None, 404),
        ("GET", "/v1/models/none", None, 404),
    ],
)
def test_a_request_that_makes_no_sense_has_the_error_body(
    server: Server, method: str, path: str, content: bytes | None, status: int
) -> None:
    headers = {"content-type": "application/json"}
    answer = httpx.request(method, server.url + path, content=content, headers=headers)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == status
    assert error["message"]


def test_a_missing_or_wrong_key_is_a_401_and_health_stays_open(start_server: StartServer) -> None:
    server = start_server("--api-key", "first", "second")
    for key in ("wrong", "firs", "firstt"):
        answer = httpx.get(f"{server.url}/v1/models", headers={"authorization": f"Bearer {key}"})
        assert answer.status_code == 401
        assert "API key" in answer.json()["error"]["message"]
    assert httpx.post(f"{server.url}/v1/completions", json={"model": "other"}).status_code == 401
    for key in ("first", "second"):
        assert server.client(api_key=key).models.list().data[0].id == "tiny"
    for path in ("/health", "/metrics", "/version"):
        assert httpx.get(server.url + path).status_code == 200
    assert "first" not in server.log.replace("first token", "")


def test_a_model_that_gives_no_finite_logits_for_a_request_is_a_500_of_that_request_alone(
    start_server: StartServer, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """A copy of the tiny model that knows one token by infinite numbers."""
    model = shutil.copytree(tiny_model_dir, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    tensors = load_file(model / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = embedding.clone()
    embedding[1999] = torch.inf
    save_file(tensors, model / "model.safetensors")
    server = start_server(model=model)
    body = {**COMPLETION, "max_tokens": 3, "temperature": 0, "logit_bias": {"1999": -100}}
    for prompt in ([5, 1999], [5, 1999, 6]):
        answer = httpx.post(f"{server.url}/v1/completions", json={**body, "prompt": prompt})
        assert answer.status_code == 500, answer.text
        error = answer.json()["error"]
        assert error["type"] == "InternalServerError"
        assert "no finite logits for this request" in error["message"]
        assert "--dtype" in error["message"]
    streamed = httpx.post(f"{server.url}/v1/completions", json={**body, "prompt": [5, 1999], "stream": True})
    assert "no finite logits" in streamed.text
    good = httpx.post(f"{server.url}/v1/completions", json={**body, "prompt": [5, 6]})
    assert good.status_code == 200, good.text
    assert server.health() == 200
