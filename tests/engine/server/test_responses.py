"""/v1/responses through the official client: the same answers as chats, in another shape."""

from __future__ import annotations

import json
from typing import Any, Literal

import httpx
import openai
import pytest
from openai.types.responses import Response
from pydantic import BaseModel

from quire_engine.server.protocol.responses import ResponsesRequest
from quire_engine.server.response_prompts import as_chat, messages_of
from tests.engine.server.conftest import Server

HELLO = [{"role": "user", "content": "Hello!"}]


class Review(BaseModel):
    verdict: Literal["good", "bad"]
    stars: Literal[1, 2, 3]


TOOL: Any = {
    "type": "function",
    "name": "look",
    "parameters": {
        "type": "object",
        "properties": {"at": {"enum": ["tree", "house"]}},
        "required": ["at"],
        "additionalProperties": False,
    },
}


def respond(server: Server, input: Any = "Hello!", **fields: Any) -> Any:
    return server.client().responses.create(model="tiny", input=input, **{"temperature": 0, **fields})


def chat(server: Server, messages: Any = HELLO, **fields: Any) -> Any:
    return server.client().chat.completions.create(model="tiny", messages=messages, temperature=0, **fields)


def messages(**fields: Any) -> list[dict[str, Any]]:
    return messages_of(ResponsesRequest.model_validate(fields))


def test_a_text_is_answered_as_a_chat_is(server: Server) -> None:
    response, expected = respond(server, max_output_tokens=60), chat(server, max_tokens=60)
    assert response.output_text == expected.choices[0].message.content
    assert (response.object, response.status, response.error) == ("response", "completed", None)
    (message,) = response.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "completed")
    assert response.usage.input_tokens == expected.usage.prompt_tokens
    assert response.usage.output_tokens == expected.usage.completion_tokens
    assert response.usage.total_tokens == expected.usage.total_tokens


def test_what_it_was_asked_with_comes_back(server: Server) -> None:
    fields = {"instructions": "Be brief.", "metadata": {"a": "b"}, "user": "me", "max_output_tokens": 5}
    response = respond(server, **fields, store=True)
    assert {name: getattr(response, name) for name in fields} == fields
    assert (response.temperature, response.model) == (0, "tiny")
    assert response.store is False


def test_an_answer_that_is_cut_is_incomplete(server: Server) -> None:
    response = respond(server, max_output_tokens=3, extra_body={"ignore_eos": True})
    assert response.status == response.output[0].status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.completed_at is None
    assert response.usage.output_tokens == 3


def test_the_events_of_a_stream_are_typed_numbered_and_add_up(server: Server) -> None:
    whole = respond(server, max_output_tokens=40)
    events = list(respond(server, max_output_tokens=40, stream=True))
    kinds = [event.type for event in events]
    deltas = kinds.count("response.output_text.delta")
    assert deltas > 3
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * deltas,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == [*range(len(events))]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == events[-4].text == events[-3].part.text == events[-1].response.output_text == whole.output_text
    assert {event.item_id for event in events if hasattr(event, "item_id")} == {events[-2].item.id}
    assert events[0].response.id == events[-1].response.id
    assert (events[0].response.status, events[0].response.output) == ("in_progress", [])
    assert events[-1].response.usage == whole.usage


def test_the_clients_own_accumulation_of_a_stream_works(server: Server) -> None:
    with server.client().responses.stream(model="tiny", input="Hello!", temperature=0, max_output_tokens=40) as stream:
        final: Response = stream.get_final_response()  # type: ignore[assignment]  # a subclass for parsed ones
    assert final.output_text == respond(server, max_output_tokens=40).output_text


def test_a_stream_that_is_cut_ends_incomplete(server: Server) -> None:
    *_, last = respond(server, max_output_tokens=2, stream=True, extra_body={"ignore_eos": True})
    assert last.type == "response.incomplete"
    assert last.response.incomplete_details.reason == "max_output_tokens"


def test_the_client_parses_an_answer_into_a_pydantic_model(server: Server) -> None:
    response = server.client().responses.parse(model="tiny", input="Hello!", text_format=Review)
    assert isinstance(response.output_parsed, Review)
    assert response.text.format.type == "json_schema"  # type: ignore[union-attr]  # it is there
    assert response.text.format.model_dump(by_alias=True)["schema"]["title"] == "Review"  # type: ignore[union-attr]  # it is there


def test_any_json_object_is_a_form_too(server: Server) -> None:
    response = respond(server, text={"format": {"type": "json_object"}}, max_output_tokens=300)
    assert response.status == "incomplete" or isinstance(json.loads(response.output_text), dict)


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_are_a_chats(server: Server, stream: bool) -> None:
    fields = {"max_output_tokens": 4, "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    response = [*respond(server, **fields, stream=True)][-1].response if stream else respond(server, **fields)
    expected = chat(server, max_tokens=4, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    found = response.output[0].content[0].logprobs
    assert [one.token for one in found] == [one.token for one in expected]
    assert [one.logprob for one in found] == pytest.approx([one.logprob for one in expected], abs=1e-4)
    assert [len(one.top_logprobs) for one in found] == [2] * 4


def test_an_answer_can_be_sent_back_as_it_came(server: Server) -> None:
    first = respond(server, max_output_tokens=60)
    history = [*HELLO, *first.output, {"role": "user", "content": [{"type": "input_text", "text": "And now?"}]}]
    said = {"role": "assistant", "content": first.output_text}
    expected = chat(server, [*HELLO, said, {"role": "user", "content": "And now?"}], max_tokens=30)
    assert respond(server, history, max_output_tokens=30).output_text == expected.choices[0].message.content


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "look"}])
def test_a_function_is_called_streamed_or_not(server: Server, choice: Any) -> None:
    fields = {"tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False}
    response = respond(server, **fields)
    (call,) = response.output
    assert (call.type, call.name, call.status, response.status) == ("function_call", "look", "completed", "completed")
    assert json.loads(call.arguments)["at"] in ("tree", "house")
    assert response.tools[0].name == "look"
    events = list(respond(server, **fields, stream=True))
    kinds = [event.type for event in events]
    assert kinds[2] == "response.output_item.added"
    assert kinds[-3:] == ["response.function_call_arguments.done", "response.output_item.done", "response.completed"]
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == events[-3].arguments == call.arguments
    assert events[2].item.call_id == events[-1].response.output[0].call_id != call.call_id
    returned = {"type": "function_call_output", "call_id": call.call_id, "output": "a tree"}
    assert respond(server, [*HELLO, call, returned], tools=[TOOL], tool_choice="none").output[0].type == "message"


def test_instructions_and_what_a_developer_says_are_one_message_of_the_systems() -> None:
    developer = {"type": "message", "role": "developer", "content": "Be kind."}
    made = messages(instructions="Be brief.", input=[developer, *HELLO])
    assert [one["role"] for one in made] == ["system", "user"]
    assert "".join(part["text"] for part in made[0]["content"]) == "Be brief.\n\nBe kind."


def test_thoughts_calls_and_what_they_returned_become_messages() -> None:
    made = messages(
        input=[
            *HELLO,
            {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
            {"type": "function_call", "call_id": "1", "name": "look", "arguments": "{}"},
            {"type": "function_call", "call_id": "2", "name": "look", "arguments": '{"at": 1}'},
            {"type": "function_call_output", "call_id": "1", "output": "a tree"},
            {"type": "function_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "a house"}]},
        ]
    )
    assert [one["role"] for one in made] == ["user", "assistant", "tool", "tool"]
    assert made[1]["reasoning"] == "Hm."
    assert made[1]["content"][0]["text"] == "I look."
    assert [call["function"]["arguments"] for call in made[1]["tool_calls"]] == ["{}", '{"at": 1}']
    assert [(one["tool_call_id"], one["content"]) for one in made[2:]] == [
        ("1", "a tree"),
        ("2", [{"type": "text", "text": "a house"}]),
    ]


def test_an_image_is_a_chats_image_and_a_fields_of_sampling_a_chats() -> None:
    image = {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "auto"}
    request = as_chat(
        ResponsesRequest.model_validate({"input": [{"role": "user", "content": [image]}], "top_k": 3, "seed": 7})
    )
    content = request.messages[0].content
    assert isinstance(content, list)
    assert content[0].image_url is not None
    assert content[0].image_url.url == image["image_url"]
    assert (request.top_k, request.seed) == (3, 7)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "send the earlier items in input"),
        ({"conversation": "conv_1"}, "conversation", "send the earlier items in input"),
        ({"background": True}, "background", "nothing is stored here"),
        ({"tools": [TOOL]}, "tool_choice", "--enable-auto-tool-choice"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", "'function'"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "no"}}, None, "tool_choice.name is 'no'"),
        (
            {"tools": [{**TOOL, "parameters": {"type": "array"}}], "tool_choice": "required"},
            "tools.0.parameters",
            "tools.0.parameters has the type 'array'",
        ),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "no"}}, "tool_choice.type", "'function'"),
        ({"truncation": "auto", "truncate_prompt_tokens": 5}, "truncation", "truncate_prompt_tokens is set"),
        ({"truncation": "auto", "input": "word " * 5000}, "input", "maximum context length is 2048 tokens"),
        ({"truncation": "auto", "input": "word " * 60000}, "input", "maximum context length is 2048 tokens"),
        ({"input": []}, None, "input is empty: send a text, or at least one item"),
        ({"input": [{"type": "web_search_call"}]}, "input.0.type", "input.0.type is 'web_search_call': it must be one"),
        ({"input": [{"role": "robot", "content": "a"}]}, "input.0.role", "'developer'"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input.0.content.0.type", "'input_image'"),
        ({"input": "word " * 5000}, "input", "2048"),
        ({"max_output_tokens": 0}, "max_output_tokens", "greater than or equal to 1"),
        (
            {"max_output_tokens": 5000},
            "max_output_tokens",
            "context length is 2048 tokens. However, max_output_tokens is 5000",
        ),
        ({"temperature": -1}, "temperature", "between 0 and 100"),
        ({"top_k": "a"}, "top_k", "integer"),
        ({"top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format", "text.format.schema is missing"),
        (
            {"text": {"format": {"type": "json_schema", "name": "a", "schema": {"not": {}}}}},
            "text.format.schema",
            "text.format.schema",
        ),
    ],
)
def test_what_cannot_be_is_a_400_that_names_the_field(
    server: Server, fields: dict[str, Any], param: str | None, says: str, stream: bool
) -> None:
    body = {"model": "tiny", "input": "Hello!", **fields, "stream": stream}
    answer = httpx.post(f"{server.url}/v1/responses", json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert says in error["message"]
    if param is not None:
        assert error["param"] == param


def long_input(count: int) -> list[Any]:
    """Turns of which a few fit in the context, and a last question."""
    turns = [{"role": role, "content": f"{i} " * 50} for i in range(count) for role in ("user", "assistant")]
    return [*turns, {"role": "user", "content": "Hello!"}]


def test_truncation_drops_the_oldest_turns_and_no_more_of_them_than_it_must(server: Server) -> None:
    items, asked = long_input(40), {"instructions": "Be brief.", "max_output_tokens": 20}
    with pytest.raises(openai.BadRequestError, match="2048 tokens"):
        respond(server, items, **asked)
    response = respond(server, items, truncation="auto", **asked)
    assert response.truncation == "auto"

    def length(start: int) -> int:
        kept = [{"role": "system", "content": "Be brief."}, *items[start:]]
        return int(httpx.post(f"{server.url}/tokenize", json={"messages": kept}).json()["count"])

    start = next(i for i in range(0, len(items), 2) if length(i) == response.usage.input_tokens)
    assert length(start) + 20 <= 2048 < length(start - 2) + 20
    assert respond(server, items[start:], **asked).output_text == response.output_text


@pytest.mark.parametrize("asked", [{}, {"max_output_tokens": 2048}], ids=["none", "more than there is"])
def test_truncation_leaves_room_for_an_answer_of_usual_length(server: Server, asked: dict[str, Any]) -> None:
    items = long_input(40)
    response = respond(server, items, truncation="auto", **asked)
    turns = httpx.post(f"{server.url}/tokenize", json={"messages": items[-3:-1]}).json()["count"]
    assert 2048 - 512 - 2 * turns < response.usage.input_tokens <= 2048 - 512


def test_truncation_leaves_what_fits_as_it_is(server: Server) -> None:
    whole = respond(server, long_input(2), max_output_tokens=5)
    cut = respond(server, long_input(2), max_output_tokens=5, truncation="auto")
    assert (cut.output_text, cut.usage.input_tokens) == (whole.output_text, whole.usage.input_tokens)
    assert (whole.truncation, cut.truncation) == ("disabled", "auto")


def test_truncation_drops_a_huge_past_and_answers_the_last_question(server: Server) -> None:
    items = [{"role": "user", "content": "word " * 100_000}, {"role": "assistant", "content": "Ok."}]
    events = list(respond(server, [*items, *HELLO], truncation="auto", stream=True, max_output_tokens=5))
    assert events[-1].response.usage.input_tokens == respond(server, max_output_tokens=5).usage.input_tokens


def test_an_unknown_model_is_a_404(server: Server) -> None:
    with pytest.raises(openai.NotFoundError, match="tiny"):
        server.client().responses.create(model="other", input="Hello!")
