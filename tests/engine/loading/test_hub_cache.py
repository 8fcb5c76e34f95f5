"""The cache's folders: which files are wanted, what counts as complete, and what may go."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NoReturn

import pytest

from quire_engine.loading.errors import CheckpointError
from quire_engine.loading.hub_cache import HubCache
from quire_engine.loading.hub_files import HubFile, needed

CONTENT = b"content"
FILE = HubFile("model.safetensors", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


def names(*paths: str) -> list[str]:
    return [file.path for file in needed("org/model", [HubFile(path, 1, "0" * 40) for path in paths])]


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        (("config.json", "model.safetensors", "pytorch_model.bin"), ["config.json", "model.safetensors"]),
        (("a.safetensors", "b.safetensors", "consolidated.safetensors"), ["a.safetensors", "b.safetensors"]),
        (("consolidated.safetensors", "params.json"), ["consolidated.safetensors", "params.json"]),
        (("pytorch_model.bin", "training_args.bin", "optimizer.pt"), ["pytorch_model.bin"]),
        (("model.safetensors", "onnx/model.safetensors", "tokenizer.model"), ["model.safetensors", "tokenizer.model"]),
        (("weights.pth", "README.md", "image.png"), ["weights.pth"]),
        (
            ("model.safetensors", "1_Pooling/config.json", "2_Dense/model.safetensors", "onnx/config.json"),
            ["1_Pooling/config.json", "model.safetensors"],
        ),
        (
            ("model.safetensors", "vision-lora/adapter_config.json", "vision-lora/adapter_model.safetensors"),
            ["model.safetensors", "vision-lora/adapter_config.json", "vision-lora/adapter_model.safetensors"],
        ),
    ],
)
def test_weights_are_wanted_in_one_layout_only(there: tuple[str, ...], wanted: list[str]) -> None:
    assert names(*there) == wanted


def test_a_repository_without_weights_is_no_model() -> None:
    with pytest.raises(CheckpointError, match="org/model has no weights"):
        names("README.md", "config.json")


def test_gits_own_digest_of_a_small_file_is_computed_as_git_does() -> None:
    hasher = HubFile("a", 6, "0" * 40).hasher()
    hasher.update(b"hello\n")
    assert hasher.hexdigest() == "ce013625030ba8dba906f756967f9e9ca394464a"


def fill(cache: HubCache, commit: str, content: bytes = CONTENT) -> HubFile:
    file = HubFile(FILE.path, len(content), hashlib.sha256(content).hexdigest())
    cache.begin(commit, [file])
    cache.blob(file).write_bytes(content)
    cache.link(commit, file)
    cache.finish(commit, [file])
    return file


def test_a_file_in_a_folder_is_linked_there(tmp_path: Path) -> None:
    cache = HubCache(tmp_path, "org/model")
    file = HubFile("1_Pooling/config.json", len(CONTENT), FILE.digest)
    cache.begin("c" * 40, [file])
    cache.blob(file).write_bytes(CONTENT)
    cache.link("c" * 40, file)
    assert (cache.snapshot("c" * 40) / "1_Pooling" / "config.json").read_bytes() == CONTENT


def aged(cache: HubCache, commit: str, seconds: float) -> None:
    path = cache.folder / ".quire" / f"{commit}.json"
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


def test_a_snapshot_is_complete_once_it_is_finished_and_while_its_files_are_whole(tmp_path: Path) -> None:
    cache = HubCache(tmp_path, "org/model")
    cache.begin("c", [FILE])
    assert cache.complete("c") is None
    fill(cache, "c")
    assert cache.complete("c") is not None
    cache.blob(FILE).write_bytes(b"cut")
    assert cache.complete("c") is None


def test_a_file_system_without_links_holds_the_file_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> NoReturn:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    cache = HubCache(tmp_path, "org/model")
    fill(cache, "c")
    assert cache.complete("c") is not None
    assert (cache.snapshot("c") / FILE.path).read_bytes() == CONTENT
    assert cache.where("c", FILE) == cache.snapshot("c") / FILE.path


def test_the_revisions_that_were_wanted_last_stay(tmp_path: Path) -> None:
    cache = HubCache(tmp_path, "org/model")
    for age, commit in enumerate(["new", "second", "third", "fourth"]):
        fill(cache, commit)
        aged(cache, commit, 100 * age)
    now = cache.touch("new")
    assert cache.superseded("new", (), 0, now) == ["second", "third", "fourth"]
    assert cache.superseded("new", (), 1, now) == ["third", "fourth"]
    assert cache.superseded("new", ("fourth",), 1, now) == ["third"]
    assert cache.superseded("new", (), 9, now) == []


def test_what_was_wanted_meanwhile_and_what_is_under_way_stays(tmp_path: Path) -> None:
    cache = HubCache(tmp_path, "org/model")
    fill(cache, "old")
    fill(cache, "new")
    aged(cache, "new", 50)
    since = cache.touch("new") - 50
    cache.begin("under-way", [FILE])
    assert cache.superseded("new", (), 0, since) == []
    aged(cache, "under-way", 100_000)
    assert cache.superseded("new", (), 0, since) == ["under-way"]


def test_what_nobody_fetched_here_is_never_removed(tmp_path: Path) -> None:
    cache = HubCache(tmp_path, "org/model")
    cache.snapshot("theirs").mkdir(parents=True)
    fill(cache, "new")
    assert cache.superseded("new", (), 0, cache.touch("new")) == []


def test_content_goes_with_the_last_snapshot_that_has_it(tmp_path: Path) -> None:
    cache = HubCache(tmp_path, "org/model")
    shared, own = fill(cache, "one"), fill(cache, "two", b"another")
    fill(cache, "three")
    cache.remove(["one", "two"])
    assert not cache.snapshot("one").exists()
    assert not cache.snapshot("two").exists()
    assert cache.blob(shared).exists()
    assert not cache.blob(own).exists()
    assert cache.complete("three") is not None
