"""A hub on loopback, and services whose models are on it."""

from __future__ import annotations

from http.server import ThreadingHTTPServer
from typing import Any

from tests.operator.services import manifest


def asked(server: ThreadingHTTPServer) -> int:
    handler: Any = server.RequestHandlerClass
    return int(sum(handler.hub.sent.values()))


def on_hub(server: ThreadingHTTPServer, memory: int | None = 24, repository: str = "org/small", **spec: Any) -> Any:
    """A service on one GPU of `memory` GiB."""
    endpoint = {"name": "HF_ENDPOINT", "value": f"http://127.0.0.1:{server.server_port}"}
    gpu: dict[str, Any] = {"count": 1} if memory is None else {"count": 1, "memoryGiB": memory}
    return manifest(model={"source": f"hf://{repository}"}, engine={"env": [endpoint]}, resources={"gpu": gpu}, **spec)
