"""Collectors of OpenTelemetry, over HTTP and gRPC, that keep what they are sent."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.engine.server.conftest import until


@dataclass
class Collector:
    """What has come so far. `url` is what a server is told."""

    url: str = ""
    batches: list[ExportTraceServiceRequest] = field(default_factory=list)

    def span_of(self, trace_id: str) -> Span:
        """The only span of a trace, once it has come."""
        until(lambda: bool(self.spans_of(trace_id)))
        (span,) = self.spans_of(trace_id)
        return span

    def spans_of(self, trace_id: str) -> list[Span]:
        return [span for span in self.spans() if span.trace_id.hex() == trace_id]

    def spans(self) -> list[Span]:
        scopes = [scope for batch in self.batches for of in batch.resource_spans for scope in of.scope_spans]
        return [span for scope in scopes for span in scope.spans]

    def resource(self) -> dict[str, Any]:
        return values(self.batches[0].resource_spans[0].resource.attributes)


def values(attributes: Any) -> dict[str, Any]:
    """Attributes as Python's own values."""
    return {one.key: _value(one.value) for one in attributes if isinstance(one, KeyValue)}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    return [_value(one) for one in value.array_value.values] if kind == "array_value" else getattr(value, kind)


@contextlib.contextmanager
def http_collector() -> Iterator[Collector]:
    collector = Collector()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            found = self.path == "/v1/traces" and self.headers["content-type"] == "application/x-protobuf"
            if found:
                collector.batches.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200 if found else 404)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector.url = f"http://127.0.0.1:{server.server_port}"
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    yield collector
    server.shutdown()
    serving.join()
    server.server_close()


@contextlib.contextmanager
def grpc_collector() -> Iterator[Collector]:
    collector = Collector()

    class Servicer(TraceServiceServicer):
        def Export(self, request: Any, _: Any) -> ExportTraceServiceResponse:  # noqa: N802  gRPC's name
            collector.batches.append(request)
            return ExportTraceServiceResponse()

    server = grpc.server(futures.ThreadPoolExecutor(2))
    add_TraceServiceServicer_to_server(Servicer(), server)
    collector.url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield collector
    server.stop(None).wait()


@contextlib.contextmanager
def silent_collector() -> Iterator[Collector]:
    """Takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield Collector(f"http://127.0.0.1:{listener.getsockname()[1]}")
