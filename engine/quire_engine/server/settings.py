"""The HTTP server's settings. Flags are derived from them, as from `EngineConfig`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from quire_engine.config import setting
from quire_engine.server.image_urls import host_of_flag


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """What the HTTP process needs beside the engine's own settings. Times are in seconds."""

    host: str = setting("0.0.0.0", "address to listen on")
    port: int = setting(8000, "port to listen on")
    served_model_name: tuple[str, ...] = setting((), "names that clients may use; the first one is reported")
    api_key: tuple[str, ...] = setting((), "keys that clients must send one of; QUIRE_API_KEY or VLLM_API_KEY too")
    chat_template: str | None = setting(None, "file with a Jinja chat template; the tokenizer's own when unset")
    response_role: str = setting("assistant", "role of chat answers")
    allowed_media_domains: tuple[str, ...] = setting(
        (), "hosts that images of chats are fetched from, by their URLs; none when unset"
    )
    media_fetch_timeout: float = setting(10.0, "seconds that an image has to come in")
    shutdown_timeout: float = setting(120.0, "seconds that running requests get to finish after SIGTERM")
    endpoints_lag: float = setting(5.0, "seconds a drain waits until no proxy sends new connections any more")
    stall_timeout: float = setting(60.0, "seconds without a sign of the engine after which /health turns 503")
    max_waiting: int = setting(0, "requests that may wait before new ones get 429; 0 sets no limit")
    ui: bool = setting(True, "a chat page at /")
    log_format: str = setting("text", "text or json", choices=("text", "json"))
    uvicorn_log_level: str = setting(
        "info", "how much to log", choices=("critical", "error", "warning", "info", "debug", "trace")
    )
    disable_log_stats: bool = setting(False, "no throughput line every 10 s")
    disable_log_requests: bool = setting(True, "no log line for each request")

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"--port is {self.port}: it must be between 0 and 65535")
        for name in ("shutdown_timeout", "endpoints_lag", "stall_timeout"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}: it must be at least 0")
        for host in self.allowed_media_domains:
            host_of_flag(host)
        if not 0 < self.media_fetch_timeout < math.inf:
            raise ValueError(f"--media-fetch-timeout is {self.media_fetch_timeout}: it must be above 0")
        if self.max_waiting < 0:
            raise ValueError(f"--max-waiting is {self.max_waiting}: it must be at least 0")
        if not self.disable_log_requests:
            raise ValueError("--disable-log-requests false is not supported yet: leave it at true")
        if self.log_format not in ("text", "json"):
            raise ValueError(f"--log-format is {self.log_format!r}: it must be text or json")
