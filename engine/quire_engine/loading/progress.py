"""How far a download is, for whoever asks over HTTP."""

from __future__ import annotations

import json
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Progress:
    """Bytes that are there and bytes that will be; used from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._there: dict[str, int] = {}
        self._total: int | None = None

    def expect(self, total: int) -> None:
        """All files together have `total` bytes."""
        with self._lock:
            self._total = total

    def tell(self, path: str, there: int) -> None:
        """Of the file `path`, `there` bytes are in the cache."""
        with self._lock:
            self._there[path] = there

    def report(self) -> dict[str, int | None]:
        """`bytes`, and `total` once it is known."""
        with self._lock:
            return {"bytes": sum(self._there.values()), "total": self._total}


def serve_progress(progress: Progress, port: int) -> int:
    """Answer `GET /progress` with JSON, in a thread of its own for as long as the process lives. Returns the port.

    Raises OSError where the port cannot be had.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == "/progress"
            body = json.dumps(progress.report() if found else {}).encode()
            self.send_response(HTTPStatus.OK if found else HTTPStatus.NOT_FOUND)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads who asked."""

    server = ThreadingHTTPServer(("", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return int(server.server_port)
