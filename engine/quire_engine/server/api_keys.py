"""The keys that clients may send, from flags, the environment and a file that may change."""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from quire_engine.startup_error import StartupError

log = logging.getLogger(__name__)

ONE_KEY = ("QUIRE_API_KEY", "VLLM_API_KEY")
SEVERAL_KEYS = "QUIRE_API_KEYS"
_LOOK_SECONDS = 1.0


def keys_of_environment(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The keys in the variables of `environment`: one in each of `ONE_KEY`, any number in `SEVERAL_KEYS`."""
    one = [environment[name] for name in ONE_KEY if environment.get(name)]
    return (*one, *environment.get(SEVERAL_KEYS, "").replace(",", " ").split())


class ApiKeys:
    """Knows the keys. Those of the file are read again when it has changed, as a mounted Secret does."""

    def __init__(self, keys: Sequence[str], file: str | None = None) -> None:
        """Without keys and file nobody needs one. Raises `StartupError` for a file that cannot be read or has none."""
        self._fixed, self._of_file = _digests(keys), frozenset[bytes]()
        self._file = None if file is None else Path(file)
        self._version, self._looked = (0, 0), time.monotonic()
        self.needed = bool(keys) or file is not None
        if self._file is not None:
            try:
                self._read(self._file)
            except (OSError, ValueError) as error:
                raise StartupError("InvalidFlag", f"--api-key-file {file} cannot be read: {error}") from error
            if not self._of_file:
                raise StartupError("InvalidFlag", f"--api-key-file {file} holds no key: write one on each line")

    def admit(self, authorization: str) -> bool:
        """Whether an `Authorization` header has one of the keys. How long it takes tells nothing of them."""
        if not self.needed:
            return True
        self._look()
        scheme, _, key = authorization.partition(" ")
        # As the bytes that were sent: a header is no text in UTF-8 to those who read it.
        sent = hashlib.sha256(key.strip().encode("latin-1")).digest()
        matches = [hmac.compare_digest(sent, known) for known in (*self._fixed, *self._of_file)]
        return scheme.lower() == "bearer" and any(matches)

    def _look(self) -> None:
        now = time.monotonic()
        if self._file is None or now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        try:
            self._read(self._file)
        except (OSError, ValueError) as error:
            log.warning("--api-key-file %s cannot be read, its last keys stay: %s", self._file, error)

    def _read(self, file: Path) -> None:
        found = file.stat()
        version = (found.st_mtime_ns, found.st_ino)
        if version != self._version:
            # editors of Windows begin a file with a mark, which would be part of its first key
            lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
            self._of_file = _digests(line for line in lines if not line.startswith("#"))
            was_read, self._version = self._version != (0, 0), version
            if was_read and not self._of_file:
                log.warning("--api-key-file %s holds no key now: none of its keys lets anybody in", file)


def _digests(keys: Iterable[str]) -> frozenset[bytes]:
    """Of one length, whatever the keys': so that a comparison does not tell it."""
    return frozenset(hashlib.sha256(key.encode()).digest() for key in keys if key)
