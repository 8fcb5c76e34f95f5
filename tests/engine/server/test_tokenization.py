"""/tokenize and /detokenize in vLLM's shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tests.engine.server.conftest import Server

CHAT = [{"role": "user", "content": "Hello!"}]


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_model_dir)


def post(server: Server, path: str, **body: Any) -> httpx.Response:
    return httpx.post(server.url + path, json=body)


@pytest.mark.parametrize("text", ["Return a string", "", "ü€\U0001f600", "word " * 3000])
def test_a_text_becomes_its_tokens_and_they_become_it_again(
    server: Server, tokenizer: PreTrainedTokenizerBase, text: str
) -> None:
    found = post(server, "/tokenize", model="tiny", prompt=text).json()
    assert found == {
        "count": len(found["tokens"]),
        "max_model_len": 2048,
        "tokens": tokenizer.encode(text),
        "token_strs": None,
    }
    assert post(server, "/detokenize", model="tiny", tokens=found["tokens"]).json() == {"prompt": text}


def test_a_chats_tokens_are_those_that_it_is_answered_from(server: Server, tokenizer: PreTrainedTokenizerBase) -> None:
    found = post(server, "/tokenize", messages=CHAT, return_token_strs=True).json()
    rendered = str(tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True))
    assert found["tokens"] == tokenizer.encode(rendered, add_special_tokens=False)
    assert found["token_strs"] == tokenizer.convert_ids_to_tokens(found["tokens"])
    asked = {"model": "tiny", "messages": CHAT, "max_tokens": 1}
    answer = post(server, "/v1/chat/completions", **asked).json()
    assert found["count"] == answer["usage"]["prompt_tokens"]
    without = post(server, "/tokenize", messages=CHAT, add_generation_prompt=False).json()
    assert found["tokens"][: without["count"]] == without["tokens"]
    assert without["count"] < found["count"]


def test_special_tokens_are_in_the_text(server: Server, tokenizer: PreTrainedTokenizerBase) -> None:
    ids = [tokenizer.eos_token_id]
    assert post(server, "/detokenize", tokens=ids).json()["prompt"] == tokenizer.eos_token


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/tokenize", {}, 400, "prompt is missing"),
        ("/tokenize", {"prompt": 5}, 400, "prompt"),
        ("/tokenize", {"prompt": "x" * (128 * 2048 + 1)}, 400, "2048 tokens"),
        ("/tokenize", {"messages": []}, 400, "messages"),
        ("/tokenize", {"messages": CHAT, "chat_template": "{{ 7 }}"}, 400, "--chat-template"),
        ("/tokenize", {"prompt": "a", "model": "other"}, 404, "other"),
        ("/detokenize", {"tokens": [2048]}, 400, "tokens holds token id 2048: this model's ids end at 2047"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens.0"),
        ("/detokenize", {"tokens": "a"}, 400, "tokens"),
        ("/detokenize", {}, 400, "tokens is missing"),
    ],
)
def test_what_cannot_be_is_refused(server: Server, path: str, body: dict[str, Any], status: int, says: str) -> None:
    answer = post(server, path, **body)
    assert answer.status_code == status, answer.text
    assert says in answer.json()["error"]["message"]
