"""A real HTTP server that has images, and does everything else that one may do instead of sending them."""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from e2e.cluster.certificates import KeyPair
from tests.engine.multimodal.llava_checkpoint import file_of, picture

IMAGE_FILE = file_of(picture(1))
BEGINNING = b"\x89PNG\r\n\x1a\n"


class ImageHost(ThreadingHTTPServer):
    """Answers by path; `asked` are the paths that were asked for, with what stood in the header Host."""

    daemon_threads = True

    def __init__(self, tls: KeyPair | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.scheme = "http" if tls is None else "https"
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls.certificate, tls.key)
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.asked: list[tuple[str, str]] = []
        self.let_go = threading.Event()
        """Ends the answers that do not come by themselves."""

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"{self.scheme}://{host}:{self.server_port}{path}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ImageHost

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers["Host"]))
        name, _, rest = self.path.removeprefix("/").partition("/")
        answer: Any = getattr(self, f"_{name.partition('?')[0].replace('-', '_')}", None)
        if answer is None:
            self._send(404, b"there is none")
        else:
            answer(rest)

    def _cat(self, _: str) -> None:
        self._send(200, IMAGE_FILE, "image/png")

    def _chunked(self, _: str) -> None:
        self._begin("image/png", "Transfer-Encoding", "chunked")
        for part in (IMAGE_FILE[:100], IMAGE_FILE[100:]):
            self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def _untyped(self, _: str) -> None:
        self._send(200, IMAGE_FILE, "binary/octet-stream")

    def _page(self, _: str) -> None:
        self._send(200, b"<html></html>", "text/html; charset=utf-8")

    def _false(self, _: str) -> None:
        self._send(200, b"this is a text", "image/png")

    def _to(self, url: str) -> None:
        self.send_response(302)
        self.send_header("Location", url if url.startswith(("http:", "file:")) else f"/{url}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _round(self, _: str) -> None:
        self._to("round")

    def _long(self, _: str) -> None:
        self._begin("image/png", "Content-Length", str(1 << 40))

    def _endless(self, _: str) -> None:
        self._begin("image/png", "Connection", "close")
        with contextlib.suppress(OSError):
            self.wfile.write(BEGINNING)
            while not self.server.let_go.is_set():
                self.wfile.write(bytes(1 << 20))

    def _silent(self, _: str) -> None:
        self.server.let_go.wait()

    def _slow(self, _: str) -> None:
        """Each byte comes long before the time that a read may take, and the last one never."""
        self._begin("image/png", "Content-Length", str(1 << 20))
        with contextlib.suppress(OSError):
            while not self.server.let_go.wait(0.05):
                self.wfile.write(b"\0")

    def _cut(self, _: str) -> None:
        self._begin("image/png", "Content-Length", str(len(IMAGE_FILE)))
        self.wfile.write(IMAGE_FILE[:100])
        self.close_connection = True

    def _gone(self, _: str) -> None:
        self.close_connection = True

    def _no_http(self, _: str) -> None:
        self.wfile.write(b"220 mail.example.com ready\r\n\r\n")
        self.close_connection = True

    def _send(self, status: int, body: bytes, kind: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _begin(self, kind: str, name: str, value: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the test says what it asked for."""


@contextlib.contextmanager
def image_host(tls: KeyPair | None = None) -> Iterator[ImageHost]:
    with ImageHost(tls) as host:
        thread = threading.Thread(target=host.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield host
        host.let_go.set()
        host.shutdown()
        thread.join()
