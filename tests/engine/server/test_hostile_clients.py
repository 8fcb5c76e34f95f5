"""Whatever clients send, and whenever they leave: no answer is a 500, nobody else notices, and nothing stays behind."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import struct
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from quire_engine.server.gate import MAX_BODY_BYTES
from quire_engine.server.streaming import EventStream
from tests.engine.server.conftest import Server, StartServer, launch, until

CHAT, COMPLETION, RESPONSE = "/v1/chat/completions", "/v1/completions", "/v1/responses"
HELLO = [{"role": "user", "content": "Hello!"}]
JSON = {"content-type": "application/json"}


def ask(server: Server, path: str, body: dict[str, Any]) -> httpx.Response:
    """Send `body` as json.dumps writes it: half characters as escapes, NaN as NaN."""
    return httpx.post(server.url + path, content=json.dumps({"max_tokens": 2, **body}), headers=JSON, timeout=60)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("top_k", 2**64, "top_k"),
        ("temperature", float("nan"), "temperature"),
        ("stop", "a\ud800", "half of a surrogate pair"),
        ("stop", ["a", "\udfff"], "half of a surrogate pair"),
        ("stop_token_ids", [2048], "ids end at 2047"),
        ("stop_token_ids", [2**80], "ids end at 2047"),
        ("stop_token_ids", [5] * 1025, "1024"),
        ("min_tokens", 2**80, "min_tokens"),
        ("prompt", "a\ud800b", "half of a surrogate pair"),
        ("prompt", ["a", "\ud800"], "half of a surrogate pair"),
        ("prompt", ["a", [1]], "prompt.1"),
        ("prompt", [2**80], "ids end at 2047"),
        ("prompt", ["a"] * 1025, "1024 answers"),
        ("messages", [{"role": "user", "content": "\ud800"}], "half of a surrogate pair"),
        ("messages", [{"role": "user", "content": [{"type": "image_url"}]}], "check image_url"),
        ("chat_template_kwargs", {"bos_token": "\ud800"}, "surrogates"),
    ],
)
def test_what_no_engine_can_take_is_a_400_before_any_answer(
    server: Server, field: str, value: object, says: str, stream: bool
) -> None:
    chat = field in ("messages", "chat_template_kwargs")
    minimal = {"messages": HELLO} if chat else {"prompt": "Hello"}
    answer = ask(server, CHAT if chat else COMPLETION, {**minimal, field: value, "stream": stream})
    assert answer.status_code == 400, answer.text
    assert says in answer.json()["error"]["message"]


def test_the_highest_seed_has_children_too(server: Server) -> None:
    answer = ask(server, COMPLETION, {"prompt": "Hello", "seed": 2**63 - 1, "n": 2, "stream": False})
    assert answer.status_code == 200
    assert len(answer.json()["choices"]) == 2


def test_no_name_is_the_first_model(server: Server) -> None:
    assert httpx.get(f"{server.url}/v1/models/").json()["id"] == "tiny"


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_beyond_the_limit_is_a_413(server: Server, chunked: bool) -> None:
    size = MAX_BODY_BYTES + 2**20

    def chunks() -> Iterator[bytes]:
        for _ in range(size // 2**20):
            yield b"x" * 2**20

    answer = httpx.post(server.url + COMPLETION, content=chunks() if chunked else b"x" * size, headers=JSON)
    assert answer.status_code == 413
    assert str(MAX_BODY_BYTES) in answer.json()["error"]["message"]


def test_a_wrong_element_after_very_many_costs_no_memory(server: Server) -> None:
    """Pydantic makes an error for each element that a union's other members would not take: a gigabyte for these."""

    def peak_kib() -> int:
        with open(f"/proc/{server.process.pid}/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

    before = peak_kib()
    assert ask(server, COMPLETION, {"prompt": ["x"] * 300_000 + [5]}).status_code == 400
    assert peak_kib() - before < 200 * 1024


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 2**31, 2**63 - 1, 2**63, 2**64, 2**80, 10**400])
    | st.floats()
    | st.text(st.characters(), max_size=8)
    | st.just("\ud800"),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=6,
)
tool = st.fixed_dictionaries(
    {
        "type": st.just("function") | anything,
        "function": st.fixed_dictionaries(
            {"name": st.sampled_from(["f", "g"]) | st.text() | anything},
            optional={"parameters": st.just({"type": "object", "properties": {"a": {"type": "null"}}}) | anything},
        )
        | anything,
    }
)
call = st.fixed_dictionaries(
    {
        "function": st.fixed_dictionaries({"name": st.just("f") | anything, "arguments": st.text() | anything})
        | anything
    },
    optional={"id": st.text() | anything, "type": anything},
)
part = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url", "input_audio"]) | anything},
    optional={
        "text": st.text() | anything,
        "image_url": st.fixed_dictionaries({"url": st.text() | anything}) | anything,
    },
)
content = st.text() | st.lists(part | st.builds(dict, type=st.just("text"), text=st.text()), max_size=3) | anything
message = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool"]) | anything, "content": content},
    optional={"name": anything, "tool_calls": st.lists(call, max_size=2) | anything, "reasoning": st.text() | anything},
)
options = {
    **dict.fromkeys(("temperature", "top_p", "min_p"), st.floats(0, 1) | anything),
    **dict.fromkeys(("top_k", "min_tokens"), st.integers(-1, 5) | anything),
    "n": st.integers(1, 3) | anything,
    "seed": st.integers(-(2**63), 2**63 - 1) | anything,
    "stop": st.text(min_size=1) | st.lists(st.text(min_size=1), max_size=3) | anything,
    "stop_token_ids": st.lists(st.integers(0, 2050), max_size=3) | anything,
    **dict.fromkeys(("include_stop_str_in_output", "ignore_eos", "skip_special_tokens"), st.booleans() | anything),
    "stream": st.booleans() | anything,
    "stream_options": st.fixed_dictionaries(
        {"include_usage": st.booleans()}, optional={"continuous_usage_stats": st.booleans()}
    )
    | anything,
    "model": st.sampled_from(["tiny", "", None]) | anything,
    "chat_template_kwargs": st.dictionaries(st.sampled_from(["tools", "bos_token", "padding"]), anything) | anything,
    **dict.fromkeys(
        ("add_generation_prompt", "continue_final_message", "add_special_tokens"), st.booleans() | anything
    ),
    "tools": st.lists(tool, max_size=3) | anything,
    "tool_choice": st.sampled_from(["required", "none", "auto"])
    | st.just({"type": "function", "function": {"name": "f"}})
    | anything,
    "parallel_tool_calls": st.booleans() | anything,
    "documents": st.lists(st.dictionaries(st.just("text"), st.text())) | anything,
    "logprobs": st.integers(0, 3) | st.booleans() | anything,
    **dict.fromkeys(("top_logprobs", "prompt_logprobs"), st.integers(0, 3) | anything),
    "echo": st.booleans() | anything,
    "best_of": st.integers(1, 3) | anything,
    **dict.fromkeys(("presence_penalty", "frequency_penalty"), st.floats(-2, 2) | anything),
    "repetition_penalty": st.floats(0.01, 100) | anything,
    "logit_bias": st.dictionaries(st.integers(0, 2050).map(str), st.floats(-100, 100), max_size=3) | anything,
    "allowed_token_ids": st.lists(st.integers(0, 2050), min_size=1, max_size=3) | anything,
    "bad_words": st.lists(st.text(min_size=1), max_size=3) | anything,
    "truncate_prompt_tokens": st.integers(-1, 5) | anything,
    "truncation_side": st.sampled_from(["left", "right"]) | anything,
    "reasoning_effort": st.sampled_from(["none", "low", "high"]) | anything,
    **dict.fromkeys(("return_token_ids", "return_tokens_as_token_ids", "include_reasoning"), st.booleans() | anything),
    **dict.fromkeys(("modalities", "verbosity", "function_call", "suffix", "kv_transfer_params"), anything),
    "priority": anything,
    "cache_salt": st.text(min_size=1) | anything,
}
max_tokens = {"max_tokens": st.integers(1, 4)}
prompt = st.text() | st.lists(st.text(), max_size=3) | st.lists(st.integers(-1, 2050), max_size=5) | anything
chats = st.fixed_dictionaries({"messages": st.lists(message, max_size=3) | anything, **max_tokens}, optional=options)
completions = st.fixed_dictionaries({"prompt": prompt, **max_tokens}, optional=options)


item = message | st.fixed_dictionaries(
    {"type": st.sampled_from(["message", "function_call", "function_call_output", "reasoning"]) | anything},
    optional=dict.fromkeys(("role", "content", "call_id", "name", "arguments", "output"), st.text() | anything),
)
of_responses = {
    "instructions": st.text() | anything,
    "metadata": st.dictionaries(st.text(), st.text() | anything, max_size=3) | anything,
    "text": st.fixed_dictionaries({}, optional={"format": anything}) | anything,
    "include": st.just(["message.output_text.logprobs"]) | anything,
    "reasoning": st.fixed_dictionaries({"effort": st.text() | anything}) | anything,
    **dict.fromkeys(("store", "background", "truncation", "previous_response_id", "tools", "user"), anything),
}
responses = st.fixed_dictionaries(
    {"input": st.text() | st.lists(item, max_size=3) | anything, "max_output_tokens": st.integers(1, 4)},
    optional={name: value for name, value in options.items() if name != "stream_options"} | of_responses,
)


@settings(max_examples=350, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    asked=st.tuples(st.just(CHAT), chats)
    | st.tuples(st.just(COMPLETION), completions)
    | st.tuples(st.just(RESPONSE), responses)
)
def test_any_json_is_answered_or_refused_with_the_error_body(
    parsing: Server, one_client: httpx.Client, asked: tuple[str, dict[str, Any]]
) -> None:
    path, body = asked
    answer = one_client.post(parsing.url + path, content=json.dumps(body), headers=JSON)
    assert answer.status_code in (200, 400, 404), answer.text
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert error["code"] == answer.status_code
        assert error["message"]
    elif answer.headers["content-type"].startswith("text/event-stream"):
        ended = "event: response.completed", "event: response.incomplete"
        assert any(one in answer.text for one in ended) or answer.text.endswith("data: [DONE]\n\n")
        assert 'data: {"error"' not in answer.text
    assert parsing.process.poll() is None


NESTED = {
    "lists": ("[", "1", "]"),
    "objects": ('{"a": ', "1", "}"),
    "schemas": ('{"type": "object", "properties": {"a": ', '{"type": "null"}', "}}"),
    "choices": ('{"anyOf": [', '{"type": "null"}', "]}"),
}
HOLDERS = (
    '"chat_template_kwargs": {"x": @}',
    '"whatever": @',
    '"documents": [{"text": @}]',
    '"tools": [{"type": "function", "function": {"name": "f", "parameters": @}}]',
    '"tool_choice": "required", "tools": [{"type": "function", "function": {"name": "f", "parameters": @}}]',
    '"response_format": {"type": "json_schema", "json_schema": {"name": "f", "schema": @}}',
    '"messages": [{"role": "user", "content": @}]',
    '"messages": [{"role": "user", "content": "Hello!", "name": @}]',
    '"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": @}}]}]',
)


@pytest.mark.parametrize("kind", NESTED)
def test_whatever_is_deeply_nested_is_answered_or_refused(parsing: Server, one_client: httpx.Client, kind: str) -> None:
    opening, inside, closing = NESTED[kind]
    for depth in (90, 250, 900, 50_000):
        nested = opening * depth + inside + closing * depth
        for holder in HOLDERS:
            for value in (nested, json.dumps(nested)) if "arguments" in holder else (nested,):
                begin = "" if "messages" in holder else f'"messages": {json.dumps(HELLO)}, '
                body = f'{{{begin}"max_tokens": 1, {holder.replace("@", value)}}}'
                answer = one_client.post(parsing.url + CHAT, content=body, headers=JSON)
                assert answer.status_code in (200, 400), (depth, holder, answer.text)
                if answer.status_code == 400:
                    assert answer.json()["error"]["code"] == 400
    assert "Traceback" not in parsing.log


@pytest.fixture(scope="module")
def parsing(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that looks for calls and for reasoning in all answers."""
    flags = ("--enable-auto-tool-choice", "--tool-call-parser=hermes", "--reasoning-parser=qwen3")
    started = launch(tmp_path_factory.mktemp("parsing"), tiny_model_dir, "--served-model-name=tiny", *flags)
    started.wait_until_ready()
    yield started
    started.stop()


@pytest.fixture
def one_client(parsing: Server) -> Iterator[httpx.Client]:
    """A client for a whole test, after which the server has to be as idle and healthy as before."""
    with httpx.Client(timeout=60) as client:
        yield client
    assert parsing.health() == 200
    until(lambda: parsing.metric("vllm:num_requests_running") == parsing.metric("vllm:num_requests_waiting") == 0, 10)


def test_clients_that_leave_at_any_moment_leave_nothing_behind(start_server: StartServer) -> None:
    server = start_server("--max-num-seqs=4")
    files = f"/proc/{server.process.pid}/fd"
    before = len(os.listdir(files))
    dice = random.Random(3)
    left_open: list[socket.socket] = []
    for _ in range(150):
        options = {"max_tokens": dice.choice([1, 50, 1000]), "ignore_eos": True, "n": dice.choice([1, 3])}
        path, asked = dice.choice([(CHAT, {"messages": HELLO}), (COMPLETION, {"prompt": "word " * 100})])
        body = json.dumps({**asked, **options, "stream": dice.random() < 0.5}).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        request = head.encode() + body
        connection = socket.create_connection(("127.0.0.1", server.port))
        connection.sendall(dice.choice([request, request, request * 2, request[: dice.randrange(1, len(request))]]))
        if dice.random() < 0.5:  # leave with a reset
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        left_open.append(connection)
        if dice.random() < 0.7:
            left_open.pop(dice.randrange(len(left_open))).close()
    for connection in left_open:
        connection.close()
    until(lambda: httpx.get(f"{server.url}/load").json() == {"server_load": 0}, 20)
    until(lambda: server.metric("vllm:num_requests_running") == server.metric("vllm:num_requests_waiting") == 0, 20)
    assert server.metric("vllm:kv_cache_usage_perc") == 0
    until(lambda: len(os.listdir(files)) <= before, 10)
    assert server.health() == 200
    assert "Traceback" not in server.log
    assert "never retrieved" not in server.log


def test_a_burst_is_refused_beyond_the_places_and_the_queue(start_server: StartServer) -> None:
    server = start_server("--max-num-seqs=1", "--max-waiting=2")
    body = {"prompt": "Return", "max_tokens": 400, "ignore_eos": True}

    async def burst() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=60) as client:
            return await asyncio.gather(*(client.post(server.url + COMPLETION, json=body) for _ in range(30)))

    answers = asyncio.run(burst())
    refused = [a for a in answers if a.status_code == 429]
    assert len(answers) - len(refused) == 3
    assert all(a.headers["retry-after"] == "1" and "waiting already" in a.json()["error"]["message"] for a in refused)


async def test_a_fault_in_the_middle_of_a_stream_is_told_and_ends_it() -> None:
    async def source() -> AsyncGenerator[bytes]:
        yield b"data: 1\n\n"
        raise KeyError("a bug")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await EventStream(source())(scope, Request(scope, receive).receive, send)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        events = (await client.get("/")).text.split("\n\n")
    assert events[0] == "data: 1"
    assert json.loads(events[1].removeprefix("data: "))["error"]["code"] == 500
    assert events[2] == "data: [DONE]"
