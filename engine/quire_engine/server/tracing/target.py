"""Where spans are sent, and how: `--otlp-traces-endpoint` and the variables beside it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from quire_engine.startup_error import StartupError

GRPC, HTTP = "grpc", "http/protobuf"
_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_EXAMPLES = {GRPC: "http://otel-collector:4317", HTTP: "http://otel-collector:4318/v1/traces"}


@dataclass(frozen=True)
class TraceTarget:
    """A collector. Over gRPC `url` has a scheme, by which OpenTelemetry tells whether to use TLS, or is host:port."""

    url: str
    protocol: str


def trace_target(endpoint: str | None, environ: Mapping[str, str]) -> TraceTarget | None:
    """None where no traces are asked for. Raises `StartupError` for what no span can be sent to."""
    if endpoint is None:
        return None
    variable = next((name for name in _VARIABLES if environ.get(name)), None)
    protocol = GRPC if variable is None else environ[variable].strip().lower()
    if protocol not in _EXAMPLES:
        raise StartupError("InvalidFlag", f"{variable} is {protocol!r}: it must be {GRPC} or {HTTP}")
    problem = _problem(endpoint, protocol)
    if problem is not None:
        shown = re.sub(r"//.*@", "//...@", endpoint)  # a password may be in it
        raise StartupError(
            "InvalidFlag",
            f"--otlp-traces-endpoint is {shown!r}, {problem}: over {protocol} write it as {_EXAMPLES[protocol]}",
        )
    if protocol == HTTP and urlsplit(endpoint).path in ("", "/"):
        endpoint = endpoint.rstrip("/") + "/v1/traces"
    return TraceTarget(endpoint, protocol)


def _problem(endpoint: str, protocol: str) -> str | None:
    schemes = ("http", "https") if protocol == HTTP else ("http", "https", "grpc")
    # gRPC's own way to name a server is host:port.
    whole = endpoint if "://" in endpoint or protocol == HTTP else f"grpc://{endpoint}"
    try:
        parts = urlsplit(whole)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        return f"which is no URL ({error})"
    if parts.scheme not in schemes:
        return f"which does not begin with {' or '.join(f'{scheme}://' for scheme in schemes)}"
    if not host or any(c.isspace() or not c.isprintable() for c in endpoint):
        return "which names no host"
    if parts.username is not None:
        return "which holds a user's name: send credentials by OTEL_EXPORTER_OTLP_TRACES_HEADERS"
    if parts.query or parts.fragment:
        return "which has a query or a fragment"
    if protocol == GRPC:
        if port is None:
            return "which names no port"
        if parts.path not in ("", "/"):
            return f"which has a path, as URLs for {_VARIABLES[0]}={HTTP} have"
    return None
