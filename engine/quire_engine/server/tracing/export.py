"""Sends spans to a collector, and never makes anybody wait for it. Imported only where traces are asked for."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path

from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from quire_engine import __version__
from quire_engine.server.tracing.attributes import error_type, span_attributes
from quire_engine.server.tracing.facts import RequestFacts
from quire_engine.server.tracing.target import GRPC, TraceTarget
from quire_engine.startup_error import StartupError

log = logging.getLogger(__name__)

FLUSH_SECONDS = 3.0
_BREAK_OFF_SECONDS = 1.0
_FILES = tuple(
    f"OTEL_EXPORTER_OTLP_{of}{kind}"
    for of in ("TRACES_", "")
    for kind in ("CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE")
)


class SpanExport:
    """Makes a span of each request and hands it to a thread of OpenTelemetry's, which sends them in batches.

    That thread's queue is bounded: spans are dropped, and a warning says so, while the collector does not take them.
    """

    def __init__(self, target: TraceTarget) -> None:
        """Connects to nothing yet. Raises `StartupError` for variables that OpenTelemetry cannot use."""
        _check_files(os.environ)
        self._target = target
        # What the variables say comes last: it wins.
        named = Resource.create({SERVICE_NAME: "quire-engine", SERVICE_VERSION: __version__})
        self._provider = TracerProvider(resource=named.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
        try:
            self._exporter = _exporter(target)
            self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        except (ValueError, OSError, RuntimeError) as error:
            raise StartupError(
                "InvalidFlag",
                f"traces cannot be sent with what the OTEL_ variables say ({error}): correct or unset them",
            ) from error
        self._tracer = self._provider.get_tracer("quire_engine", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def send(self, facts: RequestFacts, ended_ns: int) -> None:
        """Make the span of a request that has ended. Its caller decides whether it is sampled, where there is one."""
        caller = {"traceparent": facts.traceparent or "", "tracestate": facts.tracestate}
        span = self._tracer.start_span(
            "llm_request",
            context=self._propagator.extract(caller, context=Context()),
            kind=SpanKind.SERVER,
            attributes=span_attributes(facts),
            start_time=facts.begun_ns,
        )
        if error_type(facts) is not None:
            span.set_status(Status(StatusCode.ERROR))
        span.end(ended_ns)

    def close(self) -> None:
        """Send what is left. Blocks for FLUSH_SECONDS and a second more at most, whatever the collector does."""
        flushing = threading.Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        flushing.start()
        flushing.join(FLUSH_SECONDS)
        if flushing.is_alive():
            log.warning("%s did not take the last spans within %.0f s: they are lost", self._target.url, FLUSH_SECONDS)
            logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # it would say so of each batch
            self._exporter.shutdown()  # ends its retries and calls, which else last for another 10 s each
            flushing.join(_BREAK_OFF_SECONDS)


def _check_files(environ: Mapping[str, str]) -> None:
    """OpenTelemetry goes on without a file that is not there, and then fails at every batch."""
    for variable in _FILES:
        file = environ.get(variable)
        if file:
            try:
                Path(file).read_bytes()
            except OSError as error:
                raise StartupError(
                    "InvalidFlag", f"{variable} is {file}, which cannot be read: {error.strerror}"
                ) from error


def _exporter(target: TraceTarget) -> SpanExporter:
    # Each is a quarter of a second to import.
    if target.protocol == GRPC:
        from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as grpc

        return grpc.OTLPSpanExporter(endpoint=target.url)
    from opentelemetry.exporter.otlp.proto.http import trace_exporter as http

    return http.OTLPSpanExporter(endpoint=target.url)
