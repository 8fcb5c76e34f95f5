"""One file into one file of the cache: goes on where it was cut off, and is compared in the end."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_url

# its package makes these names lazily, where mypy does not see them
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # type: ignore[attr-defined]

from quire_engine.loading.errors import CheckpointError
from quire_engine.loading.hub import HUB_ERRORS, is_passing
from quire_engine.loading.hub_cache import HubCache
from quire_engine.loading.hub_files import HubFile

log = logging.getLogger(__name__)

ATTEMPTS = 6
"""Breaks in a row without a byte in between, after which the hub counts as unreachable."""

_CHUNK_BYTES = 1 << 20
_SILENCE_SECONDS = 30.0
_LONGEST_PAUSE_SECONDS = 30.0

Origin = Callable[[int], Iterator[bytes]]
"""Gives the content from a position on."""

Told = Callable[[int], None]
"""Is told how many bytes of the file are there."""


def fetch(cache: HubCache, file: HubFile, origin: Origin, told: Told) -> None:
    """Have the whole content of `file` as its blob.

    Raises OSError of the cache, what `origin` raises, and `CheckpointError` for a wrong content. Two processes may
    fetch one file at once: both write the same bytes to the same places.
    """
    part = cache.part(file)
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT, 0o664)
    try:
        if os.fstat(descriptor).st_size > file.size:
            os.ftruncate(descriptor, 0)
        digest = _fill(descriptor, file, origin, told)
        if digest != file.digest:
            part.unlink(missing_ok=True)
            told(0)
            raise CheckpointError(
                "ChecksumMismatch",
                f"{file.path} came with the digest {digest} and not {file.digest}, so it was thrown away: try again, "
                "and if it stays so look at what it comes through, a proxy, a mirror or a disk",
            )
        os.fsync(descriptor)
        _take_final_name(descriptor, cache, file)
    finally:
        os.close(descriptor)


def from_hub(repository: str, commit: str, path: str, position: int) -> Iterator[bytes]:
    """The content of a hub's file from `position` on."""
    with _response(hf_hub_url(repository, path, revision=commit), position) as response:
        # who knows no ranges sends the file from its beginning
        skip = position if response.status_code == 200 else 0
        for chunk in response.iter_bytes():
            if skip >= len(chunk):
                skip -= len(chunk)
                continue
            yield chunk[skip:]
            skip = 0


def from_disk(path: Path, position: int) -> Iterator[bytes]:
    """The content of a file from `position` on."""
    with path.open("rb") as stream:
        stream.seek(position)
        while chunk := stream.read(_CHUNK_BYTES):
            yield chunk


def _fill(descriptor: int, file: HubFile, origin: Origin, told: Told) -> str:
    """Append what is missing, and return the digest of the whole."""
    hasher = file.hasher()
    position = _hash_beginning(descriptor, hasher, file.size)
    told(position)
    failures = 0
    while position < file.size:
        begun_at = position
        try:
            for chunk in origin(position):
                if position + len(chunk) > file.size:
                    return "of a longer file"
                _write_at(descriptor, chunk, position)
                hasher.update(chunk)
                position += len(chunk)
                failures = 0
                told(position)
        except HUB_ERRORS as error:
            if not is_passing(error) or failures >= ATTEMPTS:
                raise
            log.warning("%s broke off at byte %d: %s", file.path, position, _first_line(error))
        else:
            if position == begun_at:
                return "of a shorter file"
        if position < file.size:
            _pause(failures)
            failures += 1
    return str(hasher.hexdigest())


def _hash_beginning(descriptor: int, hasher: Any, size: int) -> int:
    """Hash what is there already. Returns how much that is."""
    position = 0
    while position < size and (chunk := os.pread(descriptor, min(_CHUNK_BYTES, size - position), position)):
        hasher.update(chunk)
        position += len(chunk)
    return position


@contextmanager
def _response(url: str, position: int) -> Iterator[Any]:
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if position:
        headers["Range"] = f"bytes={position}-"
    with get_session().stream("GET", url, headers=headers, timeout=_SILENCE_SECONDS) as response:
        hf_raise_for_status(response)
        yield response


def _write_at(descriptor: int, chunk: bytes, position: int) -> None:
    rest = memoryview(chunk)
    while rest:
        written = os.pwrite(descriptor, rest, position)
        rest, position = rest[written:], position + written


def _take_final_name(descriptor: int, cache: HubCache, file: HubFile) -> None:
    part, blob = cache.part(file), cache.blob(file)
    with suppress(FileNotFoundError):  # another process may rename it at any moment
        if os.path.samestat(os.fstat(descriptor), part.stat()):
            part.replace(blob)
            return
    if not (blob.exists() and blob.stat().st_size == file.size):
        raise OSError(errno.ESTALE, f"{part} was taken away while it was written")


def _pause(failures: int) -> None:
    time.sleep(min(_LONGEST_PAUSE_SECONDS, 2.0**failures))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
