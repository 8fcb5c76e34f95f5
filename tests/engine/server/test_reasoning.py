"""Reasoning over HTTP. The tiny model thinks nothing: the chat template puts its answers inside the tags, or behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.engine.server.conftest import Server, launch

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ '\\n' }}{% endfor %}"
    "{% if thinking is undefined %}<think>{% elif not thinking %}</think>{% else %}So:{% endif %}"
)


@pytest.fixture(scope="module")
def thinker(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("thinker")
    template = directory / "template.jinja"
    template.write_text(TEMPLATE)
    flags = ("--reasoning-parser=qwen3", f"--chat-template={template}", "--served-model-name=tiny")
    started = launch(directory, tiny_model_dir, *flags)
    started.wait_until_ready()
    yield started
    started.stop()


def ask(server: Server, **fields: Any) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 12, "temperature": 0, **fields}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer


def test_what_is_written_inside_the_tags_is_reasoning_streamed_or_not(thinker: Server) -> None:
    message = ask(thinker).json()["choices"][0]["message"]
    assert message["content"] is None
    assert message["reasoning"]
    assert message["reasoning"] == message["reasoning_content"]
    lines = ask(thinker, stream=True).text.splitlines()
    deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in lines if line.startswith("data: {")]
    assert "".join(delta.get("reasoning") or "" for delta in deltas) == message["reasoning"]
    assert not any(delta.get("content") for delta in deltas)


def test_what_is_written_behind_them_is_content(thinker: Server) -> None:
    message = ask(thinker, chat_template_kwargs={"thinking": False}).json()["choices"][0]["message"]
    assert message["content"]
    assert message["reasoning"] is None


def test_reasoning_is_free_of_the_form_that_the_answer_is_held_to(thinker: Server) -> None:
    form = {"structured_outputs": {"choice": ["yes", "no"]}}
    choice = ask(thinker, **form).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (None, "length")
    assert choice["message"]["reasoning"] == ask(thinker).json()["choices"][0]["message"]["reasoning"]


def test_an_answer_without_reasoning_has_the_form_from_the_beginning(thinker: Server) -> None:
    tag = httpx.post(f"{thinker.url}/tokenize", json={"prompt": "<think>", "add_special_tokens": False}).json()
    fields: dict[str, Any] = {"logit_bias": {str(tag["tokens"][0]): -100}, "chat_template_kwargs": {"thinking": "?"}}
    form = {"structured_outputs": {"choice": ["yes", "no"]}}
    message = ask(thinker, **fields, **form).json()["choices"][0]["message"]
    assert (message["content"] in ("yes", "no"), message["reasoning"]) == (True, None)
    tools = {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"}
    choice = ask(thinker, **fields, **tools, parallel_tool_calls=False, max_tokens=60).json()["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert (call["function"]["name"], call["function"]["arguments"]) == ("f", "{}")
    assert choice["finish_reason"] == "tool_calls"


def test_a_form_holds_at_once_where_the_prompt_has_ended_reasoning(thinker: Server) -> None:
    form = {"structured_outputs": {"choice": ["yes", "no"]}}
    message = ask(thinker, chat_template_kwargs={"thinking": False}, **form).json()["choices"][0]["message"]
    assert message["content"] in ("yes", "no")
    assert message["reasoning"] is None


def test_reasoning_is_left_out_where_nobody_wants_it(thinker: Server) -> None:
    message = ask(thinker, include_reasoning=False).json()["choices"][0]["message"]
    assert (message["content"], message["reasoning"], message["reasoning_content"]) == (None, None, None)


def test_reasoning_is_an_item_of_a_response(thinker: Server) -> None:
    client = thinker.client()
    common: Any = {"model": "tiny", "input": "Hello!", "max_output_tokens": 12, "temperature": 0}
    response = client.responses.create(**common)
    (thought,) = response.output
    assert thought.type == "reasoning"
    assert thought.content is not None
    assert thought.content[0].text == ask(thinker).json()["choices"][0]["message"]["reasoning"]
    assert response.output_text == ""
    assert response.usage is not None
    assert response.usage.output_tokens_details.reasoning_tokens == response.usage.output_tokens
    events = list(client.responses.create(**common, stream=True))
    deltas = [event.delta for event in events if event.type == "response.reasoning_text.delta"]
    assert "".join(deltas) == thought.content[0].text


def test_the_usage_tells_how_many_tokens_were_reasoning(thinker: Server, server: Server) -> None:
    common = {"ignore_eos": True, "seed": 5, "temperature": 1}
    for fields in ({}, {"chat_template_kwargs": {"thinking": False}}, {"include_reasoning": False, "n": 2}):
        whole = ask(thinker, **common, **fields).json()["usage"]
        thought = 0 if "chat_template_kwargs" in fields else whole["completion_tokens"]
        assert whole["completion_tokens_details"] == {"reasoning_tokens": thought}
        lines = ask(thinker, **common, **fields, stream=True, stream_options={"include_usage": True}).text.splitlines()
        assert json.loads([line for line in lines if line.startswith("data: {")][-1][6:])["usage"] == whole
    assert ask(server).json()["usage"]["completion_tokens_details"] is None
