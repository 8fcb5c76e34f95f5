"""A small server that speaks the part of the Hugging Face Hub's protocol which a download needs.

    python3 hub_server.py --repo org/name=DIRECTORY [--port 8080] [--token SECRET]

One file on the standard library, so that a pod can run it from a ConfigMap. `GET /requests` tells how often each
file's content was sent, so that a test can see who downloaded, and `GET /sent` which bytes of it. `POST /faults` takes
the fields of `Faults` as JSON, `POST /move` repositories and the directories that their `main` is from now on.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import re
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

INFO = re.compile(r"^/api/models/(?P<repo>[^/]+/[^/]+)(/revision/(?P<revision>[^/?]+))?(\?.*)?$")
TREE = re.compile(r"^/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/?]+)(\?.*)?$")
FILE = re.compile(r"^/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>[^?]+)(\?.*)?$")
LFS = (".safetensors", ".bin", ".pth")
"""What a real repository keeps outside of git."""


@dataclass
class Faults:
    """How the hub misbehaves, by the name of the file where it matters."""

    cut_at: dict[str, int] = field(default_factory=dict)
    """Break the connection once, at this byte of the file."""

    wrong: list[str] = field(default_factory=list)
    """Send these files with one byte changed."""

    ignores_ranges: bool = False
    """Send every file from its beginning."""

    wants_token: str = ""
    """Refuse everybody without this token, besides the one that the hub was started with."""

    bytes_per_second: int = 0
    """How fast it sends; 0 is as fast as can be."""


class Hub:
    """The repositories of one server: each a directory, whose commit is named by its content."""

    def __init__(self, repositories: dict[str, Path], token: str | None = None) -> None:
        self.repositories, self.token = repositories, token
        self.commits: dict[tuple[str, str], Path] = {}
        """Earlier directories of a repository, by its name and their commit."""

        self.faults = Faults()
        self.sent: Counter[str] = Counter()
        self.ranges: list[tuple[str, int, int]] = []
        """File, first byte and the one after the last, of everything that was sent."""

        self.lock = threading.Lock()

    def commit(self, repository: str) -> str:
        return _commit(self.repositories[repository])

    def move(self, repository: str, directory: Path) -> None:
        """Make `directory` the content of `main`; the old content stays under its commit."""
        self.commits[repository, self.commit(repository)] = self.repositories[repository]
        self.repositories[repository] = directory

    def directory(self, repository: str, revision: str) -> Path | None:
        """What is at a revision; None where there is no such."""
        if revision in ("main", self.commit(repository)):
            return self.repositories[repository]
        return self.commits.get((repository, revision))

    def files(self, repository: str) -> list[str]:
        return _files(self.repositories[repository])


def _files(root: Path) -> list[str]:
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


def _commit(root: Path) -> str:
    digest = hashlib.sha1()
    for file in _files(root):
        digest.update(file.encode() + (root / file).read_bytes())
    return digest.hexdigest()


def _digest(name: str, content: bytes) -> str:
    """What the hub names the content by: its sha256 where git does not keep it, else the sha1 of git's blob."""
    if name.endswith(LFS):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """One request. The hub hangs on the server."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/faults":
            self.hub.faults = dataclasses.replace(self.hub.faults, **body)
        for repository, directory in body.items() if self.path == "/move" else ():
            self.hub.move(repository, Path(directory))
        self._json({})

    def _answer(self, *, with_body: bool) -> None:
        if self.path == "/requests":
            self._json(dict(self.hub.sent))
        elif self.path == "/sent":
            self._json(self.hub.ranges)
        elif found := INFO.match(self.path):
            if directory := self._allowed(found["repo"], found["revision"] or "main"):
                self._info(found["repo"], directory)
        elif found := TREE.match(self.path):
            if directory := self._allowed(found["repo"], found["revision"]):
                self._tree(directory)
        elif found := FILE.match(self.path):
            if directory := self._allowed(found["repo"], found["revision"]):
                self._file(directory, found["file"], with_body)
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "EntryNotFound")

    def _allowed(self, repository: str, revision: str) -> Path | None:
        token = self.hub.token or self.hub.faults.wants_token
        if token and self.headers.get("authorization") != f"Bearer {token}":
            self._refuse(HTTPStatus.UNAUTHORIZED, "GatedRepo")
        elif repository not in self.hub.repositories:
            self._refuse(HTTPStatus.NOT_FOUND, "RepoNotFound")
        else:
            directory = self.hub.directory(repository, revision)
            if directory is None:
                self._refuse(HTTPStatus.NOT_FOUND, "RevisionNotFound")
            return directory
        return None

    def _info(self, repository: str, directory: Path) -> None:
        siblings = [{"rfilename": file} for file in _files(directory)]
        self._json({"id": repository, "modelId": repository, "sha": _commit(directory), "siblings": siblings})

    def _tree(self, directory: Path) -> None:
        entries = []
        for file in _files(directory):
            content = (directory / file).read_bytes()
            entry: dict[str, object] = {"type": "file", "path": file, "size": len(content)}
            entry["oid"] = hashlib.sha1(content).hexdigest() if file.endswith(LFS) else _digest(file, content)
            if file.endswith(LFS):
                entry["lfs"] = {"oid": _digest(file, content), "size": len(content), "pointerSize": 130}
            entries.append(entry)
        self._json(entries)

    def _file(self, directory: Path, name: str, with_body: bool) -> None:
        if name not in _files(directory):
            self._refuse(HTTPStatus.NOT_FOUND, "EntryNotFound")
            return
        content = (directory / name).read_bytes()
        start, stop = 0, len(content)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        if asked and not self.hub.faults.ignores_ranges:
            start = int(asked[1])
            stop = min(stop, int(asked[2]) + 1) if asked[2] else stop
        whole = start == 0 and stop == len(content)
        self.send_response(HTTPStatus.OK if whole else HTTPStatus.PARTIAL_CONTENT)
        if not whole:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        self.send_header("ETag", f'"{_digest(name, content)}"')
        self.send_header("X-Repo-Commit", _commit(directory))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(max(0, stop - start)))
        self.end_headers()
        if with_body:
            # who reads a part looks at a header, and is counted by its own name
            counted = f"{name} (part)" if asked and asked[2] else name
            with self.hub.lock:
                self.hub.sent[counted] += 1
            if name in self.hub.faults.wrong:
                content = content[:-1] + bytes([content[-1] ^ 1])
            self._send(name, content, start, stop)

    def _send(self, name: str, content: bytes, start: int, stop: int) -> None:
        cut = self.hub.faults.cut_at.get(name)
        if cut is not None and start <= cut < stop:
            del self.hub.faults.cut_at[name]
            stop, self.close_connection = cut, True
        rate, at = self.hub.faults.bytes_per_second, start
        while at < stop:
            upto = min(stop, at + rate // 10) if rate else stop
            try:
                self.wfile.write(content[at:upto])
            except ConnectionError:
                self.close_connection = True
                break
            at = upto
            if rate:
                time.sleep(0.1)
                rate = self.hub.faults.bytes_per_second
        with self.hub.lock:
            self.hub.ranges.append((name, start, at))

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
