"""What of a chat the model goes on from, and what of it stands in the answer."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine.server.conftest import Server

BEGUN = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hello! I am"}]


def answer(server: Server, **fields: Any) -> Any:
    messages, stream = fields.pop("messages", BEGUN), fields.pop("stream", False)
    return server.client().chat.completions.create(
        model="tiny", messages=messages, temperature=0, max_tokens=30, stream=stream, extra_body=fields
    )


def test_a_final_message_that_is_continued_gives_the_rest_of_the_answer(server: Server) -> None:
    whole = answer(server, messages=BEGUN[:1]).choices[0].message.content
    rest = answer(server, continue_final_message=True).choices[0].message.content
    assert whole.startswith("Hello! I am")
    assert ("Hello! I am" + rest).startswith(whole[:20])
    assert answer(server).choices[0].message.content != rest


def test_parts_of_a_message_are_joined(server: Server) -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo!"}]
    of_parts = answer(server, messages=[{"role": "user", "content": parts}])
    assert of_parts.choices[0].message.content == answer(server, messages=BEGUN[:1]).choices[0].message.content


def test_an_echo_begins_with_the_message_that_is_continued(server: Server) -> None:
    rest = answer(server, continue_final_message=True).choices[0].message.content
    assert answer(server, continue_final_message=True, echo=True).choices[0].message.content == "Hello! I am" + rest
    chunks = answer(server, continue_final_message=True, echo=True, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "Hello! I am" + rest


def test_another_role_is_not_echoed_and_an_answer_without_a_beginning_has_the_last_role(server: Server) -> None:
    asked = BEGUN[:1]
    assert not answer(server, messages=asked, echo=True).choices[0].message.content.startswith("Hello!Hello!")
    plain = answer(server, messages=asked, add_generation_prompt=False)
    assert plain.choices[0].message.role == "user"


@pytest.mark.parametrize("path", ["chat", "text"])
def test_usage_so_far_is_in_each_chunk_when_asked_for(server: Server, path: str) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    client, common = server.client(), {"model": "tiny", "max_tokens": 8, "stream": True, "stream_options": options}
    common["extra_body"] = {"ignore_eos": True}
    chunks: list[Any]
    if path == "chat":
        chunks = list(client.chat.completions.create(messages=BEGUN[:1], **common))  # type: ignore[call-overload]  # mixed values
    else:
        chunks = list(client.completions.create(prompt="Return", **common))  # type: ignore[call-overload]  # mixed values
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == counts[-2] == 8
    assert {chunk.usage.prompt_tokens for chunk in chunks} == {chunks[-1].usage.prompt_tokens}
