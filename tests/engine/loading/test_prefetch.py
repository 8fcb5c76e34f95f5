"""`quire-engine prefetch` against a hub on loopback: what ends up on the claim, and what is said when it cannot."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from e2e.hub_server import Hub, make_server

MEGABYTE = 1 << 20
WEIGHTS = bytes(range(256)) * (3 * MEGABYTE // 256)
FILES = {
    "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
    "model.safetensors": WEIGHTS,
    "tokenizer.json": b"{}",
    "README.md": b"not needed",
    "pytorch_model.bin": b"not needed",
    "original/params.json": b"not needed",
    "consolidated.safetensors": b"not needed",
}
NEEDED = ["config.json", "model.safetensors", "tokenizer.json"]
IMPATIENT = "from quire_engine.loading import prefetch; prefetch._ASK_AGAIN_AFTER = ()"
OFFLINE = (
    "import sys; from quire_engine.loading.hub import download; print(download(sys.argv[1], revision=sys.argv[2]))"
)


def write(directory: Path, **changes: bytes) -> Path:
    for name, content in (FILES | {name.replace("__", "."): text for name, text in changes.items()}).items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    return directory


@dataclass
class Place:
    """A hub, a claim, and the command that brings the one's model onto the other."""

    server: ThreadingHTTPServer
    claim: Path
    words: Path
    env: dict[str, str] = field(default_factory=dict)

    @property
    def hub(self) -> Hub:
        handler: Any = self.server.RequestHandlerClass
        hub: Hub = handler.hub
        return hub

    @property
    def commit(self) -> str:
        return self.hub.commit("org/model")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def start(self, *flags: str, name: str = "org/model", code: str = "", **env: str) -> subprocess.Popen[str]:
        self.words.write_text("")
        base = {"HF_ENDPOINT": self.url, "QUIRE_TERMINATION_LOG": str(self.words), "PATH": "", "HOME": "/nonexistent"}
        path = {"PYTHONPATH": ":".join(p for p in sys.path if p)}
        program = f"import sys; {code}\nfrom quire_engine.cli import main; sys.exit(main(sys.argv[1:]))"
        command = [sys.executable, "-c", program, "prefetch", name, "--cache", str(self.claim), *flags]
        return subprocess.Popen(
            command, env=base | path | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self, *flags: str, name: str = "org/model", code: str = "", **env: str) -> tuple[int, str]:
        """Exit status and last words."""
        process = self.start(*flags, name=name, code=code, **env)
        _, errors = process.communicate(timeout=120)
        words = self.words.read_text()
        assert words or process.returncode, errors
        return process.returncode, words or errors

    def succeed(self, *flags: str, code: str = "", **env: str) -> str:
        """The commit that is on the claim then."""
        status, words = self.run(*flags, code=code, **env)
        assert status == 0, words
        return str(json.loads(words)["commit"])

    def snapshot(self, commit: str) -> Path:
        return self.claim / "hub/models--org--model/snapshots" / commit

    def part(self) -> Path:
        digest = hashlib.sha256(WEIGHTS).hexdigest()
        return self.claim / "hub/models--org--model/blobs" / f"{digest}.part"

    def weights_sent(self) -> list[tuple[int, int]]:
        return [(start, stop) for name, start, stop in self.hub.ranges if name == "model.safetensors"]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    server = make_server({"org/model": write(tmp_path / "source")}, host="127.0.0.1")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path / "claim").mkdir()
    yield Place(server, tmp_path / "claim", tmp_path / "termination-log")
    server.shutdown()
    server.server_close()


def eventually(check: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def test_what_serving_needs_is_there_whole_and_found_offline(place: Place) -> None:
    status, words = place.run()
    assert status == 0
    assert json.loads(words) == {"commit": place.commit, "bytes": sum(len(FILES[name]) for name in NEEDED)}
    found = {path.name: path.read_bytes() for path in place.snapshot(place.commit).iterdir()}
    assert found == {name: FILES[name] for name in NEEDED}
    for revision in (place.commit, "main"):
        environment = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(place.claim / "hub"), "PATH": ""}
        environment["PYTHONPATH"] = ":".join(p for p in sys.path if p)
        command = [sys.executable, "-c", OFFLINE, "org/model", revision]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == str(place.snapshot(place.commit))


def test_a_second_run_of_a_commit_asks_nobody(place: Place) -> None:
    commit = place.succeed()
    place.server.shutdown()
    assert place.succeed("--revision", commit, HF_ENDPOINT="http://127.0.0.1:1") == commit


def test_a_branch_whose_hub_is_away_is_what_it_was(place: Place) -> None:
    commit = place.succeed()
    assert place.succeed(code=IMPATIENT, HF_ENDPOINT="http://127.0.0.1:1") == commit
    status, words = place.run("--revision", "other", code=IMPATIENT, HF_ENDPOINT="http://127.0.0.1:1")
    assert (status, words.split(":")[0]) == (1, "HubUnreachable")


def test_a_connection_that_breaks_is_gone_on_with_at_the_byte(place: Place) -> None:
    place.hub.faults.cut_at = {"model.safetensors": 2 * MEGABYTE}
    place.succeed()
    assert place.weights_sent() == [(0, 2 * MEGABYTE), (2 * MEGABYTE, len(WEIGHTS))]


def test_a_hub_that_knows_no_ranges_is_put_up_with(place: Place) -> None:
    place.hub.faults.cut_at = {"model.safetensors": 2 * MEGABYTE}
    place.hub.faults.ignores_ranges = True
    commit = place.succeed()
    assert (place.snapshot(commit) / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_download_that_is_killed_goes_on_where_it_was(place: Place, number: signal.Signals) -> None:
    place.hub.faults.bytes_per_second = MEGABYTE
    process = place.start()
    eventually(lambda: place.part().exists() and place.part().stat().st_size > MEGABYTE // 2)
    process.send_signal(number)
    assert process.wait(timeout=30) in (-signal.SIGKILL, 128 + signal.SIGTERM)
    process.communicate()
    there = place.part().stat().st_size
    place.hub.faults.bytes_per_second = 0
    commit = place.succeed()
    assert place.weights_sent()[-1] == (there, len(WEIGHTS))
    assert (place.snapshot(commit) / "model.safetensors").read_bytes() == WEIGHTS


def test_two_downloads_at_once_do_not_harm_each_other(place: Place) -> None:
    place.hub.faults.bytes_per_second = 2 * MEGABYTE
    both = [place.start() for _ in range(2)]
    for process in both:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert (place.snapshot(place.commit) / "model.safetensors").read_bytes() == WEIGHTS
    assert not place.part().exists()


def test_wrong_bytes_are_thrown_away_and_named(place: Place) -> None:
    place.hub.faults.wrong = ["model.safetensors"]
    status, words = place.run()
    assert (status, words.split(":")[0]) == (1, "ChecksumMismatch")
    assert "model.safetensors came with the digest" in words
    place.hub.faults.wrong = []
    commit = place.succeed()
    assert (place.snapshot(commit) / "model.safetensors").read_bytes() == WEIGHTS


def test_a_small_file_with_wrong_bytes_is_found_too(place: Place) -> None:
    place.hub.faults.wrong = ["config.json"]
    assert place.run()[1].startswith("ChecksumMismatch: ")


def test_what_another_program_left_broken_is_fetched_anew(place: Place) -> None:
    blob = place.part().with_suffix("")
    blob.parent.mkdir(parents=True)
    blob.write_bytes(bytes(len(WEIGHTS)))
    commit = place.succeed()
    assert (place.snapshot(commit) / "model.safetensors").read_bytes() == WEIGHTS


def test_what_another_program_left_whole_is_not_fetched_again(place: Place) -> None:
    blob = place.part().with_suffix("")
    blob.parent.mkdir(parents=True)
    blob.write_bytes(WEIGHTS)
    place.succeed()
    assert place.weights_sent() == []


@pytest.mark.parametrize(
    ("flags", "name", "reason"),
    [((), "org/none", "ModelNotFound"), (("--revision", "v9"), "org/model", "RevisionNotFound")],
)
def test_what_is_not_there_is_named_and_not_tried_again(
    place: Place, flags: tuple[str, ...], name: str, reason: str
) -> None:
    status, words = place.run(*flags, name=name)
    assert (status, words.split(":")[0]) == (3, reason)


def test_a_gated_model_wants_the_right_token(place: Place) -> None:
    place.hub.token = "right"
    status, words = place.run()
    assert (status, words.split(":")[0]) == (3, "ModelGated")
    assert "set HF_TOKEN" in words
    assert place.succeed(HF_TOKEN="right") == place.commit


def test_a_claim_that_is_too_small_is_found_before_a_byte_is_fetched(place: Place) -> None:
    full = "import shutil; shutil.disk_usage = lambda path: type('Usage', (), {'free': 1 << 20, 'total': 1 << 30})"
    status, words = place.run(code=full)
    assert (status, words.split(":")[0]) == (3, "CacheFull")
    assert "and 0.00 GiB" not in words
    assert "of 1.00 GiB" in words
    assert place.weights_sent() == []


def test_a_claim_that_fills_up_meanwhile_says_the_same(place: Place) -> None:
    full = "import errno, os\ndef pwrite(*_): raise OSError(errno.ENOSPC, 'full')\nos.pwrite = pwrite"
    status, words = place.run(code=full)
    assert (status, words.split(":")[0]) == (3, "CacheFull")


def test_older_revisions_go_but_for_those_that_are_kept(place: Place, tmp_path: Path) -> None:
    commits = [place.succeed()]
    for number in range(3):
        place.hub.move("org/model", write(tmp_path / f"source-{number}", config__json=b"{} " + bytes([48 + number])))
        flags = ["--keep-revisions", "1", "--keep", commits[0]]
        commits.append(place.succeed(*flags))
        time.sleep(0.02)  # file systems tell times apart only so well
    left = {path.name for path in place.snapshot("x").parent.iterdir()}
    assert left == {commits[0], commits[2], commits[3]}
    # the weights are the same in all of them, and were fetched once
    assert (place.snapshot(commits[0]) / "model.safetensors").read_bytes() == WEIGHTS
    assert place.weights_sent() == [(0, len(WEIGHTS))]


def test_without_a_number_nothing_is_removed(place: Place, tmp_path: Path) -> None:
    first = place.succeed()
    place.hub.move("org/model", write(tmp_path / "moved", config__json=b"{}"))
    second = place.succeed()
    assert {path.name for path in place.snapshot("x").parent.iterdir()} == {first, second}


def test_a_copy_of_the_claim_asks_no_hub_and_is_made_once(place: Place, tmp_path: Path) -> None:
    commit = place.succeed()
    node = Place(place.server, tmp_path / "node", tmp_path / "words")
    flags = (f"--from={place.claim}", "--revision", "main")
    place.server.shutdown()
    both = [node.start(*flags, HF_ENDPOINT="http://127.0.0.1:1") for _ in range(2)]
    for process in both:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert {path.name: path.read_bytes() for path in node.snapshot(commit).iterdir()} == {
        name: FILES[name] for name in NEEDED
    }
    # a second pod of the node needs the claim as little as the hub
    place.claim.rename(tmp_path / "away")
    assert node.succeed("--revision", commit, f"--from={place.claim}", HF_ENDPOINT="http://127.0.0.1:1") == commit


def test_a_copy_of_what_the_claim_lacks_says_so(place: Place, tmp_path: Path) -> None:
    status, words = place.run(f"--from={tmp_path / 'elsewhere'}")
    assert (status, words.split(":")[0]) == (3, "ModelNotCached")


@pytest.fixture
def without_safetensors(place: Place, tmp_path: Path) -> Place:
    """A hub whose model has its weights in an older format alone."""
    source = tmp_path / "older"
    source.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (source / name).write_bytes(FILES[name])
    (source / "pytorch_model.bin").write_bytes(WEIGHTS)
    place.hub.move("org/model", source)
    return place


def assert_no_safetensors(found: tuple[int, str]) -> None:
    status, words = found
    assert (status, words.split(":")[0]) == (3, "InvalidCheckpoint")
    assert "no safetensors files that this engine reads, only pytorch_model.bin" in words
    assert "save_pretrained" in words


def test_weights_that_the_engine_does_not_read_are_refused_before_a_byte_is_fetched(
    without_safetensors: Place,
) -> None:
    assert_no_safetensors(without_safetensors.run())
    assert without_safetensors.hub.ranges == []


def test_weights_for_another_engine_are_fetched_in_any_format_and_still_refused_to_ours(
    without_safetensors: Place, tmp_path: Path
) -> None:
    place = without_safetensors
    commit = place.succeed("--any-format")
    assert (place.snapshot(commit) / "pytorch_model.bin").read_bytes() == WEIGHTS
    assert_no_safetensors(place.run())
    node = Place(place.server, tmp_path / "node", tmp_path / "words")
    assert_no_safetensors(node.run(f"--from={place.claim}"))
    assert node.succeed(f"--from={place.claim}", "--any-format") == commit


def test_how_far_it_is_can_be_asked(place: Place) -> None:
    code = """
import json, urllib.request
from quire_engine.loading import prefetch
serve = prefetch.serve_progress
def and_show(progress, port):
    print(serve(progress, port), flush=True)
prefetch.serve_progress = and_show
"""
    place.hub.faults.bytes_per_second = MEGABYTE
    process = place.start("--progress-port", "0", code=code, HF_HUB_DISABLE_PROGRESS_BARS="1")
    assert process.stdout is not None
    port = int(process.stdout.readline())

    def report() -> dict[str, int]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/progress", timeout=10) as answer:
            found: dict[str, int] = json.load(answer)
        return found

    total = sum(len(FILES[name]) for name in NEEDED)
    halfway = eventually(lambda: (r := report())["total"] and r["bytes"] > MEGABYTE and r)
    assert halfway["total"] == total
    assert MEGABYTE < halfway["bytes"] < total
    process.kill()
    process.communicate()


def write_adapter(directory: Path, *lacking: str) -> Path:
    files = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights"}
    for name, content in files.items():
        if name not in lacking:
            (directory / name).write_bytes(content)
    return directory


def fetched(place: Place) -> set[str]:
    return {path.name for path in place.snapshot(place.commit).iterdir()}


ADAPTER = {"adapter_config.json", "adapter_model.safetensors"}


def test_of_an_adapter_nothing_else_is_fetched_and_its_commit_is_found_offline(place: Place, tmp_path: Path) -> None:
    write_adapter(tmp_path / "source")
    commit = place.succeed("--adapter")
    assert fetched(place) == ADAPTER
    environment = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(place.claim / "hub"), "PATH": ""}
    environment["PYTHONPATH"] = ":".join(p for p in sys.path if p)
    command = [sys.executable, "-c", OFFLINE.replace("download", "download_adapter"), "org/model", commit]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(place.snapshot(commit))


def test_a_repository_may_be_a_model_and_an_adapter_in_either_order(place: Place, tmp_path: Path) -> None:
    write_adapter(tmp_path / "source")
    place.succeed("--adapter")
    place.succeed()
    assert fetched(place) == ADAPTER | set(NEEDED)
    place.server.shutdown()
    place.succeed("--revision", place.commit, "--adapter")
    assert fetched(place) == ADAPTER | set(NEEDED)


@pytest.mark.parametrize("lacking", sorted(ADAPTER))
def test_a_repository_without_an_adapter_is_said_to_be_none(place: Place, tmp_path: Path, lacking: str) -> None:
    write_adapter(tmp_path / "source", lacking)
    status, words = place.run("--adapter")
    assert (status, words.startswith(f"InvalidAdapter: org/model has no {lacking}: name")) == (3, True), words


def test_an_adapter_is_copied_from_a_claim(place: Place, tmp_path: Path) -> None:
    write_adapter(tmp_path / "source")
    commit = place.succeed("--adapter")
    origin = place.claim
    place.claim = tmp_path / "node"
    place.claim.mkdir()
    place.server.shutdown()
    assert place.succeed("--adapter", f"--revision={commit}", f"--from={origin}") == commit
    assert fetched(place) == ADAPTER


def test_another_engine_takes_an_adapters_weights_as_they_are(place: Place, tmp_path: Path) -> None:
    write_adapter(tmp_path / "source", "adapter_model.safetensors")
    (tmp_path / "source/adapter_model.bin").write_bytes(b"weights")
    place.succeed("--adapter", "--any-format")
    assert fetched(place) == {"adapter_config.json", "adapter_model.bin"}
