"""Where spans go, and that nobody waits for whoever takes them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from quire_engine.server.tracing.target import GRPC, HTTP, TraceTarget, trace_target
from quire_engine.startup_error import StartupError
from tests.engine.server.collector import silent_collector

OVER_HTTP = {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": HTTP}
SENDS = """
import logging, sys
from quire_engine.server.tracing.export import SpanExport
from quire_engine.server.tracing.facts import Operation, RequestFacts
from quire_engine.server.tracing.target import TraceTarget

logging.basicConfig()
export = SpanExport(TraceTarget(sys.argv[1], sys.argv[2]))
for _ in range(5000):
    facts = RequestFacts(Operation("chat", "chatcmpl"), "id")
    export.send(facts, facts.begun_ns + 1)
export.close()
"""
IMPORTS = """
import sys
import quire_engine.server.app, quire_engine.server.serve, quire_engine.server.startup
print([name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter", "grpc"))])
"""


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("protocol", [GRPC, HTTP])
def test_what_a_full_queue_cannot_hold_is_dropped_and_the_end_comes(
    protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "600")
    with silent_collector() as collector:
        done = python(SENDS, collector.url, protocol)
    assert done.returncode == 0, done.stderr
    assert "Queue full, dropping Span" in done.stderr
    assert "did not take the last spans within 3 s: they are lost" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("protocol", [GRPC, HTTP])
def test_a_collector_that_is_away_is_no_failure(protocol: str) -> None:
    done = python(SENDS, "http://127.0.0.1:9", protocol)  # the port of a service that nobody runs any more
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_without_the_flag_nothing_of_it_is_imported() -> None:
    assert python(IMPORTS).stdout.strip() == "[]"


def test_variables_that_cannot_be_used_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    from quire_engine.server.tracing.export import SpanExport

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "soon")
    with pytest.raises(StartupError, match=r"InvalidFlag: traces cannot be sent .*'soon'.*correct or unset"):
        SpanExport(TraceTarget("http://collector:4317", GRPC))


def test_a_certificate_that_cannot_be_read_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    from quire_engine.server.tracing.export import SpanExport

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "/nowhere/ca.pem")
    with pytest.raises(StartupError, match=r"TRACES_CERTIFICATE is /nowhere/ca.pem, which cannot be read: No such"):
        SpanExport(TraceTarget("https://collector:4317", GRPC))


@pytest.mark.parametrize(
    ("endpoint", "environ", "target"),
    [
        ("http://collector:4317", {}, TraceTarget("http://collector:4317", GRPC)),
        ("https://[::1]:4317/", {}, TraceTarget("https://[::1]:4317/", GRPC)),
        ("grpc://collector:4317", {}, TraceTarget("grpc://collector:4317", GRPC)),
        ("collector:4317", {}, TraceTarget("collector:4317", GRPC)),
        ("http://collector:4318/v1/traces", OVER_HTTP, TraceTarget("http://collector:4318/v1/traces", HTTP)),
        ("https://collector/of/us", OVER_HTTP, TraceTarget("https://collector/of/us", HTTP)),
        ("http://collector:4318/", OVER_HTTP, TraceTarget("http://collector:4318/v1/traces", HTTP)),
        ("http://c:1", {"OTEL_EXPORTER_OTLP_PROTOCOL": HTTP}, TraceTarget("http://c:1/v1/traces", HTTP)),
        ("http://c:1", OVER_HTTP | {"OTEL_EXPORTER_OTLP_PROTOCOL": GRPC}, TraceTarget("http://c:1/v1/traces", HTTP)),
        (None, {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "nonsense"}, None),
    ],
)
def test_an_endpoint_is_taken_as_opentelemetry_takes_it(
    endpoint: str | None, environ: dict[str, str], target: TraceTarget | None
) -> None:
    assert trace_target(endpoint, environ) == target


@pytest.mark.parametrize(
    ("endpoint", "environ", "says"),
    [
        ("", {}, "names no host"),
        ("collector", {}, "names no port"),
        ("http://collector", {}, "names no port"),
        ("http://:4317", {}, "names no host"),
        ("http://a collector:4317", {}, "names no host"),
        ("http://collector:port", {}, "is no URL"),
        ("http://collector:99999", {}, "is no URL"),
        ("http://[::1:4317", {}, "is no URL"),
        ("ftp://collector:4317", {}, "does not begin with http://"),
        ("http://collector:4317?a=b", {}, "has a query"),
        ("http://me:secret@collector:4317", {}, "OTEL_EXPORTER_OTLP_TRACES_HEADERS"),
        ("http://collector:4318/v1/traces", {}, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf"),
        ("grpc://collector:4317", OVER_HTTP, "does not begin with http:// or https://"),
        ("collector:4318", OVER_HTTP, "does not begin with http:// or https://"),
    ],
)
def test_an_endpoint_that_no_span_can_be_sent_to_is_refused_with_one_that_can(
    endpoint: str, environ: dict[str, str], says: str
) -> None:
    example = "http://otel-collector:4318/v1/traces" if environ else "http://otel-collector:4317"
    with pytest.raises(StartupError) as refusal:
        trace_target(endpoint, environ)
    assert says in str(refusal.value)
    assert str(refusal.value).startswith("InvalidFlag: --otlp-traces-endpoint is ")
    assert str(refusal.value).endswith(f"write it as {example}")
    assert "secret" not in str(refusal.value)


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(StartupError, match=r"TRACES_PROTOCOL is 'http/json': it must be grpc or http/protobuf"):
        trace_target("http://collector:4318", {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"})
