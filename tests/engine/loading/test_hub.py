"""Downloads from a hub: what is fetched, and what is said when it cannot be. The hub here is a real HTTP server."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
    "model.safetensors": b"weights",
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"",
    "README.md": b"not needed",
    "pytorch_model.bin": b"not needed",
    "original/params.json": b"not needed",
    "onnx/config.json": b"not needed",
    "1_Pooling/config.json": b"{}",
    "2_Dense/model.safetensors": b"not needed",
    "consolidated.safetensors": b"not needed",
}
FETCH = """
import sys
from quire_engine.loading.hub import download
from quire_engine.loading.errors import CheckpointError
try:
    print(download(sys.argv[1], revision=sys.argv[2] or None, folder=sys.argv[3]))
except CheckpointError as error:
    print(f"{error.reason}: {error}")
"""


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's API that a snapshot needs, for org/open and org/gated."""

    seen: list[tuple[str, str | None]]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        self.seen.append((self.path, self.headers.get("Authorization")))
        path = self.path.split("?")[0]
        if "/org/open" not in path and "/org/gated" not in path:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
        elif "/org/gated" in path and self.headers.get("Authorization") != "Bearer right":
            self._send(401, b"{}", {"X-Error-Code": "GatedRepo"}, body)
        elif "/revision/" in path and path.rpartition("/")[2] not in ("main", COMMIT):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
        elif path.startswith("/api/models/") and "/tree/" in path:
            tree = [{"type": "file", "path": n, "size": len(c), "oid": "0" * 40} for n, c in FILES.items()]
            self._send(200, json.dumps(tree).encode(), {}, body)
        elif path.startswith("/api/models/"):
            info = {"id": "org/open", "sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES]}
            self._send(200, json.dumps(info).encode(), {}, body)
        elif f"/resolve/{COMMIT}/" in path:
            name = path.partition(f"/resolve/{COMMIT}/")[2]
            headers = {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT}
            self._send(200, FILES[name], headers, body)
        else:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"}, body)

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content)), "Content-Type": "application/json"}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output quiet."""


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.seen = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def fetch(hub: str, name: str, folder: Path, revision: str = "", **env: str) -> str:
    """What `download` returned or raised, in a process of its own: huggingface_hub reads its settings on import."""
    base = {"HF_ENDPOINT": hub, "HF_HOME": str(folder / "home"), "PATH": "", "HF_HUB_DISABLE_XET": "1"}
    # `-c` puts the working directory on the path, so the package is found where the tests' own interpreter finds it.
    path = {"PYTHONPATH": ":".join(p for p in sys.path if p)}
    command = [sys.executable, "-c", FETCH, name, revision, str(folder / "hub")]
    done = subprocess.run(command, env=base | path | env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_only_what_serving_needs_is_fetched_and_only_once(hub: str, tmp_path: Path) -> None:
    directory = Path(fetch(hub, "org/open", tmp_path))
    assert {str(f.relative_to(directory)) for f in directory.rglob("*") if f.is_file()} == {
        "1_Pooling/config.json",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
    }
    Hub.seen.clear()
    assert fetch(hub, "org/open", tmp_path) == str(directory)
    assert not [path for path, _ in Hub.seen if path.endswith("model.safetensors")]
    assert fetch(hub, "org/open", tmp_path, HF_HUB_OFFLINE="1") == str(directory)


@pytest.mark.parametrize("variable", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"])
def test_a_token_opens_a_gated_model(hub: str, tmp_path: Path, variable: str) -> None:
    assert Path(fetch(hub, "org/gated", tmp_path, **{variable: "right"})).is_dir()


def test_a_refused_model_says_whether_there_was_a_token(hub: str, tmp_path: Path) -> None:
    assert fetch(hub, "org/gated", tmp_path).startswith(f"ModelGated: {hub} refuses org/gated (401): set HF_")
    assert "the token in HF_TOKEN may not read it" in fetch(hub, "org/gated", tmp_path, HF_TOKEN="wrong")


def test_a_missing_model_and_a_missing_revision_are_told_apart(hub: str, tmp_path: Path) -> None:
    assert fetch(hub, "org/none", tmp_path).startswith(f"ModelNotFound: org/none is not at {hub} (404)")
    assert fetch(hub, "org/open", tmp_path, "v9").startswith("RevisionNotFound: org/open has no revision 'v9'")


def test_a_name_that_is_none_is_refused(hub: str, tmp_path: Path) -> None:
    assert fetch(hub, "not a name", tmp_path).startswith("ModelNotFound: 'not a name' is neither")


def test_an_offline_miss_and_a_hub_out_of_reach_are_told_apart(hub: str, tmp_path: Path) -> None:
    offline = fetch(hub, "org/open", tmp_path, HF_HUB_OFFLINE="1")
    assert offline.startswith("ModelNotCached: org/open at main is not in the cache")
    assert "`quire-engine prefetch`" in offline
    assert fetch("http://127.0.0.1:1", "org/open", tmp_path).startswith("HubUnreachable: org/open: http://127.0.0.1:1 ")
