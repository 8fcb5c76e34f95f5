"""The HTTP server's settings. Flags are derived from them, as from `EngineConfig`."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from quire_engine.config import setting
from quire_engine.reasoning.tags import TAGS
from quire_engine.server.image_urls import host_of_flag
from quire_engine.tools.formats import FORMATS


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """What the HTTP process needs beside the engine's own settings. Times are in seconds."""

    host: str = setting("0.0.0.0", "address to listen on")
    port: int = setting(8000, "port to listen on")
    served_model_name: tuple[str, ...] = setting((), "names that clients may use; the first one is reported")
    root_path: str = setting("", "path at which a proxy has put the server, such as /llm")
    api_key: tuple[str, ...] = setting(
        (), "keys that clients must send one of, beside those of the environment", repeatable=True
    )
    api_key_file: str | None = setting(
        None, "file with more such keys, one a line; lines that begin with # are comments; read again when it changes"
    )
    allowed_origins: tuple[str, ...] = setting(("*",), "origins of web pages that may call the server; or a JSON list")
    allowed_methods: tuple[str, ...] = setting(("*",), "methods that such pages may use; or a JSON list")
    allowed_headers: tuple[str, ...] = setting(("*",), "headers that such pages may send; or a JSON list")
    allow_credentials: bool = setting(False, "let such pages send cookies and keys of the browser's own")
    ssl_certfile: str | None = setting(None, "PEM file with the certificate to serve HTTPS with, and its chain")
    ssl_keyfile: str | None = setting(None, "PEM file with the certificate's key, where it is not in the same file")
    ssl_ca_certs: str | None = setting(None, "PEM file with the authorities whose certificates clients may show")
    ssl_cert_reqs: int = setting(0, "whether clients show one: 0 no, 1 they may, 2 they must")
    enable_ssl_refresh: bool = setting(True, "read these files again when they change")
    enable_request_id_headers: bool = setting(True, "answers carry X-Request-Id: the request's own, or a new one")
    chat_template: str | None = setting(None, "file with a Jinja chat template; the tokenizer's own when unset")
    enable_auto_tool_choice: bool = setting(False, "let models call tools by their own choice")
    tool_call_parser: str | None = setting(None, "format in which the model calls tools", choices=tuple(FORMATS))
    reasoning_parser: str | None = setting(
        None, "model whose tags part reasoning from the answer; both are content when unset", choices=tuple(TAGS)
    )
    response_role: str = setting("assistant", "role of chat answers")
    allowed_media_domains: tuple[str, ...] = setting(
        (), "hosts that images of chats are fetched from, by their URLs; none when unset"
    )
    media_fetch_timeout: float = setting(10.0, "seconds that an image has to come in")
    receive_timeout: float = setting(
        30.0, "seconds that a request's header has to come in, and its body beside 1 KiB/s"
    )
    allow_runtime_lora_updating: bool = setting(
        False, "let clients load adapters from any folder that the server can read, and unload them"
    )
    shutdown_timeout: float = setting(120.0, "seconds that running requests get to finish after SIGTERM")
    endpoints_lag: float = setting(5.0, "seconds a drain waits until no proxy sends new connections any more")
    stall_timeout: float = setting(60.0, "seconds without a sign of the engine after which /health turns 503")
    max_waiting: int = setting(0, "requests that may wait before new ones get 429; 0 sets no limit")
    legacy_metrics: bool = setting(True, "metrics under names that vLLM has retired, too")
    otlp_traces_endpoint: str | None = setting(
        None, "OpenTelemetry collector that a trace of each request is sent to, such as http://otel-collector:4317"
    )
    ui: bool = setting(True, "a chat page at /")
    log_format: str = setting("text", "text or json", choices=("text", "json"))
    uvicorn_log_level: str = setting(
        "info", "how much to log", choices=("critical", "error", "warning", "info", "debug", "trace")
    )
    enable_prompt_tokens_details: bool = setting(False, "of no effect: each usage tells the prompt's cached tokens")
    disable_log_stats: bool = setting(False, "no throughput line every 10 s")
    disable_log_requests: bool = setting(True, "a log line for each answer only at level debug; false: at info")

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"--port is {self.port}: it must be between 0 and 65535")
        for name in ("shutdown_timeout", "endpoints_lag", "stall_timeout"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}: it must be at least 0")
        for host in self.allowed_media_domains:
            host_of_flag(host)
        for name in ("media_fetch_timeout", "receive_timeout"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}: it must be above 0")
        if self.enable_auto_tool_choice and self.tool_call_parser is None:
            raise ValueError("--enable-auto-tool-choice needs --tool-call-parser: name the model's format")
        if self.max_waiting < 0:
            raise ValueError(f"--max-waiting is {self.max_waiting}: it must be at least 0")
        for name in ("allowed_origins", "allowed_methods", "allowed_headers"):
            object.__setattr__(self, name, _as_list(name, getattr(self, name)))
        if self.root_path and not self.root_path.startswith("/"):
            raise ValueError(f"--root-path is {self.root_path!r}: it must begin with a slash, as in /llm")
        object.__setattr__(self, "root_path", self.root_path.rstrip("/"))
        if self.ssl_cert_reqs not in (0, 1, 2):
            raise ValueError(f"--ssl-cert-reqs is {self.ssl_cert_reqs}: it must be 0, 1 or 2")
        needs_certificate = self.ssl_keyfile or self.ssl_ca_certs or self.ssl_cert_reqs
        if needs_certificate and self.ssl_certfile is None:
            raise ValueError("--ssl-certfile is missing: the other --ssl flags need it")
        if self.ssl_cert_reqs and self.ssl_ca_certs is None:
            raise ValueError(f"--ssl-cert-reqs is {self.ssl_cert_reqs}: name the authorities with --ssl-ca-certs")
        if self.log_format not in ("text", "json"):
            raise ValueError(f"--log-format is {self.log_format!r}: it must be text or json")


def _as_list(name: str, values: tuple[str, ...]) -> tuple[str, ...]:
    """The values of a flag that may also be one list in JSON, as vLLM takes it."""
    if len(values) != 1 or not values[0].startswith("["):
        return values
    try:
        found = json.loads(values[0])
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise ValueError(f"--{name.replace('_', '-')} is {values[0]}: it must be a JSON list of strings, or names")
    return tuple(found)
