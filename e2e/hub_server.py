"""A small server that speaks the part of the Hugging Face Hub's protocol which a download needs.

    python3 hub_server.py --repo org/name=DIRECTORY [--port 8080] [--token SECRET]

One file on the standard library, so that a pod can run it from a ConfigMap. `GET /requests` tells how often each
file's content was sent, so that a test can see who downloaded.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import threading
from collections import Counter
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

INFO = re.compile(r"^/api/models/(?P<repo>[^/]+/[^/]+)(/revision/(?P<revision>[^/?]+))?(\?.*)?$")
TREE = re.compile(r"^/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/?]+)(\?.*)?$")
FILE = re.compile(r"^/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>[^?]+)(\?.*)?$")


class Hub:
    """The repositories of one server: each is a directory, with one commit named by its content."""

    def __init__(self, repositories: dict[str, Path], token: str | None = None) -> None:
        self.repositories, self.token = repositories, token
        self.sent: Counter[str] = Counter()
        self.lock = threading.Lock()

    def commit(self, repository: str) -> str:
        digest = hashlib.sha1()
        for file in self.files(repository):
            digest.update(file.encode() + (self.repositories[repository] / file).read_bytes())
        return digest.hexdigest()

    def files(self, repository: str) -> list[str]:
        root = self.repositories[repository]
        return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


class Handler(BaseHTTPRequestHandler):
    """One request. The hub hangs on the server."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        if self.path == "/requests":
            self._json(dict(self.hub.sent))
        elif found := INFO.match(self.path):
            if self._allowed(found["repo"], found["revision"] or "main"):
                self._info(found["repo"])
        elif found := TREE.match(self.path):
            if self._allowed(found["repo"], found["revision"]):
                self._tree(found["repo"])
        elif found := FILE.match(self.path):
            if self._allowed(found["repo"], found["revision"]):
                self._file(found["repo"], found["file"], with_body)
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "EntryNotFound")

    def _allowed(self, repository: str, revision: str) -> bool:
        if self.hub.token and self.headers.get("authorization") != f"Bearer {self.hub.token}":
            self._refuse(HTTPStatus.UNAUTHORIZED, "GatedRepo")
        elif repository not in self.hub.repositories:
            self._refuse(HTTPStatus.NOT_FOUND, "RepoNotFound")
        elif revision not in ("main", self.hub.commit(repository)):
            self._refuse(HTTPStatus.NOT_FOUND, "RevisionNotFound")
        else:
            return True
        return False

    def _info(self, repository: str) -> None:
        siblings = [{"rfilename": file} for file in self.hub.files(repository)]
        self._json({"id": repository, "modelId": repository, "sha": self.hub.commit(repository), "siblings": siblings})

    def _tree(self, repository: str) -> None:
        root = self.hub.repositories[repository]
        entries = []
        for file in self.hub.files(repository):
            content = (root / file).read_bytes()
            entries.append(
                {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            )
        self._json(entries)

    def _file(self, repository: str, name: str, with_body: bool) -> None:
        if name not in self.hub.files(repository):
            self._refuse(HTTPStatus.NOT_FOUND, "EntryNotFound")
            return
        content = (self.hub.repositories[repository] / name).read_bytes()
        start, stop = 0, len(content)
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", "")):
            start = int(asked[1])
            stop = min(stop, int(asked[2]) + 1) if asked[2] else stop
        whole = start == 0 and stop == len(content)
        self.send_response(HTTPStatus.OK if whole else HTTPStatus.PARTIAL_CONTENT)
        if not whole:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.hub.commit(repository))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(max(0, stop - start)))
        self.end_headers()
        if with_body:
            # who reads a part looks at a header, and is counted by its own name
            counted = f"{name} (part)" if asked and asked[2] else name
            with self.hub.lock:
                self.hub.sent[counted] += 1
            self.wfile.write(content[start:stop])

    def _refuse(self, status: HTTPStatus, code: str) -> None:
        body = json.dumps({"error": code}).encode()
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self._end_with_json(body)

    def _json(self, value: object) -> None:
        self.send_response(HTTPStatus.OK)
        self._end_with_json(json.dumps(value).encode())

    def _end_with_json(self, body: bytes) -> None:
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: `GET /requests` tells what was asked for."""


def make_server(
    repositories: dict[str, Path], *, host: str = "", port: int = 0, token: str | None = None
) -> ThreadingHTTPServer:
    """A server that is not running yet; `serve_forever()` runs it."""
    handler = type("BoundHandler", (Handler,), {"hub": Hub(repositories, token)})
    return ThreadingHTTPServer((host, port), handler)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repo", action="append", required=True, metavar="ORG/NAME=DIRECTORY")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--token")
    found = parser.parse_args()
    repositories = {name: Path(folder) for name, _, folder in (r.partition("=") for r in found.repo)}
    make_server(repositories, port=found.port, token=found.token).serve_forever()


if __name__ == "__main__":
    main()
