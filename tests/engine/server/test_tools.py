"""Tools over HTTP: calls that are demanded, calls that the model chooses, streamed or not, and what is refused.

The tiny model calls nothing by itself. A grammar makes it write what other models do.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest
from openai.types.chat import ChatCompletionMessage

from tests.engine.server.conftest import Server, launch

MESSAGES: Any = [{"role": "user", "content": "What is the weather in Oslo?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"$ref": "#/$defs/Days"}},
            "required": ["city", "days"],
            "additionalProperties": False,
            "$defs": {"Days": {"type": "integer", "minimum": 1, "maximum": 9}},
        },
    },
}
TIME: Any = {"type": "function", "function": {"name": "get_time"}}
TOOLS: Any = [WEATHER, TIME]
CALL = '{"name": "get_weather", "arguments": {"city": "Oslo", "days": 2}}'
CALLS = f"Well.\n<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{CALL.replace('2', '3')}\n</tool_call>"
# Renders what it gets of tools and of calls, so that a test sees it.
TEMPLATE = (
    "{% for t in tools or [] %}tool {{ t.function.name }} {{ t.function | tojson }}{{ '\\n' }}{% endfor %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{% for c in m.tool_calls or [] %} calls {{ c.function.name }} in {{ c.function.arguments.city }}{% endfor %}"
    "{% if m.tool_call_id %} for {{ m.tool_call_id }}{% endif %}"
    "{% if m.reasoning_content %} because {{ m.reasoning_content }}{% endif %}{{ '\\n' }}{% endfor %}"
)


@pytest.fixture(scope="module")
def hermes(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("hermes")
    template = directory / "template.jinja"
    template.write_text(TEMPLATE)
    flags = ("--enable-auto-tool-choice", "--tool-call-parser=hermes", f"--chat-template={template}")
    started = launch(directory, tiny_model_dir, "--served-model-name=tiny", *flags)
    started.wait_until_ready()
    yield started
    started.stop()


def ask(server: Server, **fields: Any) -> httpx.Response:
    body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 300, "seed": 1, **fields}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)


def choice(server: Server, **fields: Any) -> dict[str, Any]:
    answer = ask(server, **fields)
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()["choices"][0]
    return made


def streamed(server: Server, **fields: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The choice that a stream's chunks add up to, and the chunks' deltas."""
    text = ask(server, stream=True, **fields).text
    choices = [c for line in text.splitlines() if line.startswith("data: {") for c in json.loads(line[6:])["choices"]]
    message: dict[str, Any] = {"content": "", "tool_calls": []}
    for delta in (c["delta"] for c in choices):
        message["content"] += delta.get("content") or ""
        for part in delta.get("tool_calls") or []:
            if part["index"] == len(message["tool_calls"]):
                message["tool_calls"].append(part)
            else:
                message["tool_calls"][part["index"]]["function"]["arguments"] += part["function"]["arguments"]
    return {"message": message, "finish_reason": choices[-1]["finish_reason"]}, [c["delta"] for c in choices]


def calls_of(made: dict[str, Any]) -> list[tuple[str, Any]]:
    calls = made["message"]["tool_calls"]
    return [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in calls]


def test_a_required_call_is_one_of_the_tools_with_valid_arguments(server: Server) -> None:
    for seed in range(4):
        fields: Any = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False, "seed": seed}
        made = choice(server, **fields)
        ((name, arguments),) = calls_of(made)
        if name == "get_weather":
            jsonschema.validate(arguments, WEATHER["function"]["parameters"])
        else:
            assert (name, arguments) == ("get_time", {})
        assert (made["finish_reason"], made["message"]["content"]) == ("tool_calls", None)
        assert calls_of(streamed(server, **fields)[0]) == [(name, arguments)]


def test_several_calls_may_be_required_at_once(server: Server) -> None:
    most = max(len(calls_of(choice(server, tools=[TIME], tool_choice="required", seed=seed))) for seed in range(8))
    assert most > 1


def test_a_named_call_is_of_that_tool(server: Server) -> None:
    named = {"type": "function", "function": {"name": "get_weather"}}
    made = choice(server, tools=TOOLS, tool_choice=named)
    ((name, arguments),) = calls_of(made)
    assert name == "get_weather"
    jsonschema.validate(arguments, WEATHER["function"]["parameters"])
    assert made["finish_reason"] == "stop"  # as OpenAI says where there was no choice
    again, deltas = streamed(server, tools=TOOLS, tool_choice=named)
    assert calls_of(again) == [(name, arguments)]
    parts = [part for delta in deltas for part in delta.get("tool_calls") or []]
    assert len(parts) > 3, "the arguments came in one piece"
    assert parts[0]["id"].startswith("chatcmpl-tool-")
    assert parts[0]["type"] == "function"
    assert all(set(part) == {"index", "function"} and set(part["function"]) == {"arguments"} for part in parts[1:])


def test_the_official_client_adds_up_a_streamed_call(server: Server) -> None:
    with server.client().chat.completions.stream(
        model="tiny", messages=MESSAGES, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, seed=2
    ) as stream:
        kinds = {event.type for event in stream}
        message: ChatCompletionMessage = stream.get_final_completion().choices[0].message
    assert "tool_calls.function.arguments.done" in kinds
    assert message.tool_calls is not None
    (call,) = message.tool_calls
    assert call.type == "function"
    assert isinstance(json.loads(call.function.arguments), dict)


def test_a_call_that_is_cut_off_has_its_beginning(server: Server) -> None:
    named = {"type": "function", "function": {"name": "get_weather"}}
    made = choice(server, tools=TOOLS, tool_choice=named, max_tokens=3)
    assert made["finish_reason"] == "length"
    (call,) = made["message"]["tool_calls"]
    assert call["function"]["arguments"].startswith("{")


def test_chosen_calls_are_found_streamed_or_not(hermes: Server) -> None:
    fields: Any = {"tools": TOOLS, "structured_outputs": {"choice": [CALLS]}}
    made = choice(hermes, **fields)
    expected = [("get_weather", {"city": "Oslo", "days": days}) for days in (2, 3)]
    assert calls_of(made) == expected
    assert (made["message"]["content"], made["finish_reason"]) == ("Well.", "tool_calls")
    assert len({call["id"] for call in made["message"]["tool_calls"]}) == 2
    again, _ = streamed(hermes, **fields)
    assert calls_of(again) == expected
    assert (again["message"]["content"], again["finish_reason"]) == ("Well.", "tool_calls")


def test_only_the_first_call_is_told_where_calls_are_not_to_be_parallel(hermes: Server) -> None:
    fields: Any = {"tools": TOOLS, "structured_outputs": {"choice": [CALLS]}, "parallel_tool_calls": False}
    assert calls_of(choice(hermes, **fields)) == [("get_weather", {"city": "Oslo", "days": 2})]
    assert len(calls_of(streamed(hermes, **fields)[0])) == 1


def test_answers_without_a_call_are_as_ever(hermes: Server) -> None:
    for fields in ({"tools": TOOLS}, {"tools": TOOLS, "tool_choice": "none"}, {}):
        made = choice(hermes, **fields, structured_outputs={"choice": ["It rains.\n"]})
        assert (made["message"]["content"], made["message"]["tool_calls"]) == ("It rains.\n", [])
        assert made["finish_reason"] == "stop"
    none = choice(hermes, tools=TOOLS, tool_choice="none", structured_outputs={"choice": [CALLS]})
    assert (none["message"]["content"], none["message"]["tool_calls"]) == (CALLS, [])


def test_each_of_several_answers_has_its_own_calls(hermes: Server) -> None:
    answer = ask(hermes, tools=TOOLS, n=2, structured_outputs={"choice": [CALLS]}).json()
    assert [len(calls_of(made)) for made in answer["choices"]] == [2, 2]


def test_the_template_sees_tools_calls_and_their_results(hermes: Server) -> None:
    history = [
        *MESSAGES,
        {
            "role": "assistant",
            "content": None,
            "reasoning": "it was asked",
            "tool_calls": [
                {"id": "a1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "a1", "content": "rain"},
        {"role": "assistant", "content": "Rain.", "tool_calls": None},
    ]
    ids = httpx.post(f"{hermes.url}/tokenize", json={"messages": history, "tools": [TIME]}).json()["tokens"]
    text = httpx.post(f"{hermes.url}/detokenize", json={"tokens": ids}).json()["prompt"]
    assert text == (
        'tool get_time {"name": "get_time"}\n'
        "user: What is the weather in Oslo?\n"
        "assistant:  calls get_weather in Oslo because it was asked\n"
        "tool: rain for a1\n"
        "assistant: Rain.\n"
    )


NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"tools": TOOLS}, "tool_choice", "--enable-auto-tool-choice"),
        ({"tools": TOOLS, "tool_choice": "auto"}, "tool_choice", "set it to required"),
        ({"tool_choice": "required"}, "tool_choice", "tool_choice demands a call and tools is empty"),
        (
            {"tools": [TIME], "tool_choice": NAMED},
            "tool_choice",
            "tool_choice.function.name is 'get_weather' and tools offers",
        ),
        ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice", "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "custom"}}, "tool_choice", "tool_choice"),
        ({"tools": [TIME, TIME], "tool_choice": "required"}, "tools", "two functions of the name 'get_time'"),
        ({"tools": [TIME] * 129, "tool_choice": "none"}, "tools", "at most 128"),
        ({"tools": [{"type": "web_search"}], "tool_choice": "none"}, "tools.0", "tools.0"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools.0.function.name", "at least 1"),
        ({"tools": TOOLS, "tool_choice": NAMED, "guided_regex": "a"}, "tool_choice", "and guided_regex another form"),
        ({"tools": TOOLS, "tool_choice": NAMED, "echo": True}, "tool_choice", "leave echo"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]},
            "messages.0.tool_calls.0.function.name",
            "is missing",
        ),
    ],
)
def test_what_cannot_be_called_is_refused(server: Server, fields: dict[str, Any], param: str | None, says: str) -> None:
    for stream in (False, True):
        answer = ask(server, **fields, stream=stream)
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert says in error["message"]
        assert error["param"].startswith(param)


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"type": "strin"}, "has the type 'strin'"),
        ({"type": "object", "properties": {"a": {"type": "strin"}}}, "Invalid type: strin"),
        ({"type": "object", "not": {}}, 'Unimplemented keys: ["not"]'),
        ({"type": "object", "properties": {"a": {"$ref": "#/$defs/Missing"}}}, ""),
    ],
)
def test_a_schema_that_cannot_be_held_names_its_tool(server: Server, parameters: dict[str, Any], says: str) -> None:
    tools = [TIME, {"type": "function", "function": {"name": "get_weather", "parameters": parameters}}]
    for tool_choice in ("required", NAMED):
        answer = ask(server, tools=tools, tool_choice=tool_choice)
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert says in error["message"]
        assert "tools.1" in error["message"]
        assert error["param"] in ("tools", "tools.1.function.parameters")


def test_a_parser_is_needed_to_look_for_calls(start_server: Any) -> None:
    failed = start_server("--enable-auto-tool-choice", wait=False)
    assert failed.process.wait(30) != 0
    assert "--enable-auto-tool-choice needs --tool-call-parser" in failed.log


def test_the_client_s_own_loop_of_calls_and_results_runs(hermes: Server) -> None:
    client: openai.OpenAI = hermes.client()
    messages: Any = [*MESSAGES]
    first = client.chat.completions.create(
        model="tiny", messages=messages, tools=TOOLS, extra_body={"structured_outputs": {"choice": [CALLS]}}
    )
    messages.append(first.choices[0].message)
    for call in first.choices[0].message.tool_calls or []:
        messages.append({"role": "tool", "tool_call_id": call.id, "content": "rain"})
    second = client.chat.completions.create(model="tiny", messages=messages, tools=TOOLS, max_tokens=5)
    assert second.choices[0].message.role == "assistant"
