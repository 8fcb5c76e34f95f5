"""Traces: a real server, a real client, a real collector."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.engine.server.collector import Collector, grpc_collector, http_collector, silent_collector, values
from tests.engine.server.conftest import Server, StartServer, launch, until

SECRET = "xyzzy"
MESSAGES: Any = [{"role": "user", "content": f"Hello, {SECRET}!"}]
LONG: Any = {"prompt": "Return", "max_tokens": 400, "temperature": 0, "ignore_eos": True}


@dataclass
class Caller:
    """A span that calls the server."""

    sampled: bool = True
    trace_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    span_id: str = field(default_factory=lambda: uuid.uuid4().hex[:16])

    @property
    def headers(self) -> dict[str, str]:
        flags = "01" if self.sampled else "00"
        return {"traceparent": f"00-{self.trace_id}-{self.span_id}-{flags}", "tracestate": "vendor=known"}


@pytest.fixture
def caller() -> Caller:
    return Caller()


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with http_collector() as started:
        yield started


@pytest.fixture(scope="module")
def traced(collector: Collector, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        flags = ("--served-model-name", "tiny", "small", f"--otlp-traces-endpoint={collector.url}")
        started = launch(tmp_path_factory.mktemp("traced"), tiny_model_dir, *flags)
    started.wait_until_ready()
    yield started
    started.stop()


def post(server: Server, path: str, caller: Caller, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json=body, headers=caller.headers, timeout=60)


def error_of(span: Span) -> str | None:
    error: str | None = values(span.attributes).get("error.type")
    assert (error is not None) == (span.status.code == Status.STATUS_CODE_ERROR)
    return error


def test_a_span_is_the_callers_child_and_tells_the_usage(traced: Server, collector: Collector, caller: Caller) -> None:
    answer = traced.client().chat.completions.create(
        model="small",
        messages=MESSAGES,
        max_tokens=7,
        temperature=0.5,
        top_p=0.9,
        seed=3,
        n=2,
        extra_headers=caller.headers,
    )
    span = collector.span_of(caller.trace_id)
    assert (span.name, span.kind) == ("llm_request", Span.SPAN_KIND_SERVER)
    assert (span.parent_span_id.hex(), span.trace_state) == (caller.span_id, "vendor=known")
    assert error_of(span) is None
    told = values(span.attributes)
    assert answer.usage is not None
    assert {name: told[name] for name in told if "latency" not in name} == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "quire",
        "gen_ai.request.id": answer.id.removeprefix("chatcmpl-"),
        "gen_ai.request.model": "small",
        "gen_ai.request.stream": False,
        "gen_ai.request.max_tokens": 7,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.seed": 3,
        "gen_ai.request.n": 2,
        "gen_ai.request.choice.count": 2,
        "gen_ai.response.model": "small",
        "gen_ai.response.id": answer.id,
        "gen_ai.response.finish_reasons": [choice.finish_reason for choice in answer.choices],
        "gen_ai.usage.input_tokens": answer.usage.prompt_tokens,
        "gen_ai.usage.prompt_tokens": answer.usage.prompt_tokens,
        "gen_ai.usage.output_tokens": answer.usage.completion_tokens,
        "gen_ai.usage.completion_tokens": answer.usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": answer.usage.prompt_tokens_details.cached_tokens,  # type: ignore[union-attr]  # ours has them
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
    }


def test_latencies_add_up_within_the_span(traced: Server, collector: Collector, caller: Caller) -> None:
    assert post(traced, "/v1/completions", caller, **LONG | {"max_tokens": 20}).status_code == 200
    span = collector.span_of(caller.trace_id)
    told = values(span.attributes)
    queue, prefill, decode, inference = (
        told[f"gen_ai.latency.time_in_{part}"] for part in ("queue", "model_prefill", "model_decode", "model_inference")
    )
    assert min(queue, prefill, decode) > 0
    assert told["gen_ai.latency.time_to_first_token"] == pytest.approx(queue + prefill)
    assert inference == pytest.approx(prefill + decode)
    assert (
        queue + inference <= told["gen_ai.latency.e2e"] <= (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
    )


def test_a_stream_tells_what_its_last_event_tells(traced: Server, collector: Collector, caller: Caller) -> None:
    stream = traced.client().chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        max_tokens=9,
        stream=True,
        stream_options={"include_usage": True},
        extra_headers=caller.headers,
    )
    *pieces, last = stream
    told = values(collector.span_of(caller.trace_id).attributes)
    assert last.usage is not None
    assert told["gen_ai.request.stream"] is True
    assert told["gen_ai.usage.input_tokens"] == last.usage.prompt_tokens
    assert told["gen_ai.usage.output_tokens"] == last.usage.completion_tokens
    assert told["gen_ai.response.id"] == last.id
    assert told["gen_ai.response.finish_reasons"] == [pieces[-1].choices[0].finish_reason]


def test_several_prompts_are_one_span_with_all_their_answers(
    traced: Server, collector: Collector, caller: Caller
) -> None:
    body = {"prompt": ["one", "two"], "n": 2, "best_of": 3, "max_tokens": 3, "ignore_eos": True}
    usage = post(traced, "/v1/completions", caller, **body).json()["usage"]
    told = values(collector.span_of(caller.trace_id).attributes)
    assert told["gen_ai.operation.name"] == "text_completion"
    assert told["gen_ai.response.finish_reasons"] == ["length"] * 4
    assert told["gen_ai.usage.output_tokens"] == usage["completion_tokens"] == 18


def test_a_prompt_that_is_only_looked_at_has_no_output(traced: Server, collector: Collector, caller: Caller) -> None:
    body = {"prompt": "Return a string", "max_tokens": 0, "echo": True, "logprobs": 1}
    usage = post(traced, "/v1/completions", caller, **body).json()["usage"]
    told = values(collector.span_of(caller.trace_id).attributes)
    assert (told["gen_ai.usage.input_tokens"], told["gen_ai.usage.output_tokens"]) == (usage["prompt_tokens"], 0)


@pytest.mark.parametrize("stream", [False, True])
def test_beams_are_traced(traced: Server, collector: Collector, caller: Caller, stream: bool) -> None:
    body = {"prompt": "Return", "use_beam_search": True, "n": 2, "best_of": 4, "max_tokens": 4, "stream": stream}
    assert post(traced, "/v1/completions", caller, **body).status_code == 200
    told = values(collector.span_of(caller.trace_id).attributes)
    assert len(told["gen_ai.response.finish_reasons"]) == 2
    assert told["gen_ai.usage.output_tokens"] > 0
    assert told["gen_ai.latency.time_to_first_token"] > 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_is_a_chat(traced: Server, collector: Collector, caller: Caller, stream: bool) -> None:
    answer = post(traced, "/v1/responses", caller, input=f"Hello, {SECRET}!", max_output_tokens=16, stream=stream)
    told = values(collector.span_of(caller.trace_id).attributes)
    assert told["gen_ai.operation.name"] == "chat"
    assert told["http.route"] == "/v1/responses"
    assert told["gen_ai.request.max_tokens"] == 16
    assert f'"id":"{told["gen_ai.response.id"]}"' in answer.text
    assert f'"output_tokens":{told["gen_ai.usage.output_tokens"]},' in answer.text


def test_a_call_of_a_tool_is_why_an_answer_ended(traced: Server, collector: Collector, caller: Caller) -> None:
    tool = {"type": "function", "function": {"name": "get_time", "description": SECRET}}
    body = {"messages": MESSAGES, "tools": [tool], "tool_choice": "required", "max_tokens": 100}
    answer = post(traced, "/v1/chat/completions", caller, **body).json()
    told = values(collector.span_of(caller.trace_id).attributes)
    assert told["gen_ai.response.finish_reasons"] == [answer["choices"][0]["finish_reason"]] == ["tool_calls"]


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"prompt": SECRET, "model": SECRET[::-1]}, "NotFoundError"),
        ({"prompt": SECRET, "top_p": 0}, "BadRequestError"),
        ({"prompt": SECRET, "top_p": SECRET}, "BadRequestError"),
        ({"prompt": SECRET, "max_tokens": 10**6}, "BadRequestError"),
        ({"prompt": SECRET, "stream": True, "structured_outputs": {"regex": f"({SECRET}"}}, "BadRequestError"),
    ],
)
def test_what_is_refused_has_a_span_with_its_error(
    traced: Server, collector: Collector, caller: Caller, body: dict[str, Any], error: str
) -> None:
    answer = post(traced, "/v1/completions", caller, **body)
    assert answer.json()["error"]["type"] == error
    span = collector.span_of(caller.trace_id)
    assert error_of(span) == error
    assert values(span.attributes)["http.response.status_code"] == answer.status_code
    assert "gen_ai.response.id" not in values(span.attributes)


def test_a_model_whose_name_is_no_text_costs_no_span(traced: Server, collector: Collector, caller: Caller) -> None:
    body = b'{"prompt": "a", "model": "\\ud800' + b"x" * 100_000 + b'"}'
    headers = caller.headers | {"content-type": "application/json"}
    assert httpx.post(f"{traced.url}/v1/completions", content=body, headers=headers).status_code in (400, 404)
    span = collector.span_of(caller.trace_id)
    assert error_of(span) is not None
    assert len(values(span.attributes).get("gen_ai.request.model", "")) < 1000


def test_a_client_that_leaves_a_stream_is_told_of(traced: Server, collector: Collector, caller: Caller) -> None:
    body = LONG | {"stream": True}
    with httpx.stream("POST", f"{traced.url}/v1/completions", json=body, headers=caller.headers) as answer:
        next(answer.iter_lines())
    span = collector.span_of(caller.trace_id)
    told = values(span.attributes)
    assert error_of(span) == "ClientDisconnected"
    assert 0 < told["gen_ai.usage.output_tokens"] < 400
    assert "gen_ai.response.finish_reasons" not in told
    assert told["gen_ai.latency.e2e"] > told["gen_ai.latency.time_to_first_token"]


def test_a_client_that_leaves_before_its_answer_is_told_of(
    traced: Server, collector: Collector, caller: Caller
) -> None:
    before = traced.metric("vllm:request_success_total", finished_reason="abort")
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{traced.url}/v1/completions", json=LONG | {"n": 16}, headers=caller.headers, timeout=0.2)
    until(lambda: traced.metric("vllm:request_success_total", finished_reason="abort") > before)
    assert error_of(collector.span_of(caller.trace_id)) == "ClientDisconnected"


def test_a_caller_that_is_not_sampled_has_no_span(traced: Server, collector: Collector, caller: Caller) -> None:
    left_out = Caller(sampled=False)
    assert post(traced, "/v1/completions", left_out, prompt="a", max_tokens=1).status_code == 200
    assert post(traced, "/v1/completions", caller, prompt="a", max_tokens=1).status_code == 200
    collector.span_of(caller.trace_id)  # it ended later, and spans come in their order
    assert not collector.spans_of(left_out.trace_id)


@pytest.mark.parametrize("headers", [{}, {"traceparent": "00-nonsense", "tracestate": "=,="}])
def test_without_a_caller_a_span_is_the_first_of_its_trace(
    traced: Server, collector: Collector, headers: dict[str, str]
) -> None:
    name = uuid.uuid4().hex
    body = {"prompt": "a", "max_tokens": 1}
    httpx.post(f"{traced.url}/v1/completions", json=body, headers=headers | {"x-request-id": name}, timeout=60)

    def found() -> list[Span]:
        return [span for span in collector.spans() if values(span.attributes)["gen_ai.request.id"] == name]

    until(lambda: bool(found()))
    (span,) = found()
    assert not span.parent_span_id
    assert len(span.trace_id) == 16


def test_only_what_the_model_is_asked_is_traced(traced: Server, collector: Collector, caller: Caller) -> None:
    before = Caller()
    for path in ("/health", "/metrics", "/v1/models"):
        assert httpx.get(f"{traced.url}{path}", headers=before.headers).status_code == 200
    assert post(traced, "/tokenize", before, prompt="a").status_code == 200
    assert post(traced, "/v1/completions", caller, prompt="a", max_tokens=1).status_code == 200
    collector.span_of(caller.trace_id)
    assert not collector.spans_of(before.trace_id)


def test_no_prompt_and_no_answer_is_in_a_span(traced: Server, collector: Collector, caller: Caller) -> None:
    body = {"prompt": f"{SECRET} Return", "max_tokens": 40, "stop": [f"{SECRET}!"], "echo": True, "user": SECRET}
    said = post(traced, "/v1/completions", caller, **body).json()["choices"][0]["text"]
    collector.span_of(caller.trace_id)
    sent = b"".join(batch.SerializeToString() for batch in collector.batches)
    assert SECRET.encode() not in sent
    assert said.removeprefix(f"{SECRET} Return").encode() not in sent


def test_the_service_has_a_name(traced: Server, collector: Collector, caller: Caller) -> None:
    post(traced, "/v1/completions", caller, prompt="a", max_tokens=1)
    collector.span_of(caller.trace_id)
    assert collector.resource()["service.name"] == "quire-engine"
    assert collector.resource()["service.version"]


def test_vectors_go_to_a_collector_over_grpc_under_the_name_that_the_variables_say(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch, caller: Caller
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "named")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "team=search,service.name=other")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    with grpc_collector() as collector:
        server = start_server("--task=embed", f"--otlp-traces-endpoint={collector.url}")
        usage = post(server, "/v1/embeddings", caller, input=["one text", "another"]).json()["usage"]
        told = values(collector.span_of(caller.trace_id).attributes)
        assert collector.resource()["service.name"] == "named"
        assert collector.resource()["team"] == "search"
    assert told["gen_ai.operation.name"] == "embeddings"
    assert told["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert told["gen_ai.latency.time_in_model_inference"] > 0
    assert not {name for name in told if "output" in name or "finish" in name or "first_token" in name}


def test_what_a_dying_server_was_doing_is_sent_before_it_ends(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch, caller: Caller
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")
    with grpc_collector() as collector:
        server = start_server(f"--otlp-traces-endpoint={collector.url}")
        body = LONG | {"stream": True}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, headers=caller.headers) as answer:
            lines = answer.iter_lines()
            next(lines)
            os.kill(server.engine_pid(), signal.SIGKILL)
            assert '"error"' in "".join(lines)
        assert server.process.wait(60) == 1
        assert error_of(collector.span_of(caller.trace_id)) == "InternalServerError"


def test_a_collector_that_never_answers_holds_up_neither_requests_nor_the_end(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch, caller: Caller
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "600")
    with silent_collector() as collector:
        server = start_server(f"--otlp-traces-endpoint={collector.url}")
        for _ in range(3):
            assert post(server, "/v1/completions", caller, prompt="a", max_tokens=2).status_code == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
    assert "did not take the last spans" in server.log
    assert "Traceback" not in server.log


def test_an_endpoint_that_is_none_ends_the_start(start_server: StartServer) -> None:
    server = start_server("--otlp-traces-endpoint=otel-collector", wait=False)
    assert server.process.wait(60) == 1
    assert "write it as http://otel-collector:4317" in server.termination_message
    assert "Traceback" not in server.log
