"""Two processes that fetch one file into one cache, with one overtaking the other at each point where that matters."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from quire_engine.loading.hub_cache import HubCache
from quire_engine.loading.hub_files import HubFile
from quire_engine.loading.transfer import fetch

CONTENT = b"content"
FILE = HubFile("model.safetensors", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture
def cache(tmp_path: Path) -> HubCache:
    cache = HubCache(tmp_path, "org/model")
    cache.begin("c", [FILE])
    return cache


def whole(position: int) -> Iterator[bytes]:
    yield CONTENT[position:]


def told(_: int) -> None:
    pass


def test_who_is_overtaken_while_it_writes_finds_the_file_there(cache: HubCache) -> None:
    def overtaken(position: int) -> Iterator[bytes]:
        yield from whole(position)
        fetch(cache, FILE, whole, told)

    fetch(cache, FILE, overtaken, told)
    assert cache.blob(FILE).read_bytes() == CONTENT


def test_who_is_overtaken_while_it_renames_finds_the_file_there(
    cache: HubCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = os.path.samestat

    def then_the_other_renames(mine: os.stat_result, there: os.stat_result) -> bool:
        cache.part(FILE).rename(cache.blob(FILE))
        return same(mine, there)

    monkeypatch.setattr(os.path, "samestat", then_the_other_renames)
    fetch(cache, FILE, whole, told)
    assert cache.blob(FILE).read_bytes() == CONTENT


def test_a_file_that_somebody_removed_meanwhile_is_missed(cache: HubCache) -> None:
    def removed(position: int) -> Iterator[bytes]:
        yield from whole(position)
        cache.part(FILE).unlink()

    with pytest.raises(OSError, match="was taken away while it was written"):
        fetch(cache, FILE, removed, told)
