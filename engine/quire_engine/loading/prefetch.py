"""`quire-engine prefetch`: a model of the hub onto a claim or a node's disk, before anybody serves it."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, constants

from quire_engine.last_words import give_up, leave
from quire_engine.loading.errors import CheckpointError
from quire_engine.loading.hub import HUB_ERRORS, explain, is_passing
from quire_engine.loading.hub_cache import COMMIT, HubCache, Manifest
from quire_engine.loading.hub_files import (
    HubFile,
    check_format,
    has_adapter,
    is_adapter,
    list_files,
    needed,
    needed_of_adapter,
)
from quire_engine.loading.progress import Progress, serve_progress
from quire_engine.loading.transfer import Origin, fetch, from_disk, from_hub

log = logging.getLogger(__name__)

FILES_AT_ONCE = 8

WAITING_WILL_NOT_HELP = 3
"""Exit status for what stays as it is until somebody acts. 1 is for what another attempt may get over."""

_FOR_SOMEBODY_TO_ACT = {"ModelGated", "ModelNotFound", "RevisionNotFound", "InvalidCheckpoint", "CacheFull"}
_FOR_SOMEBODY_TO_ACT |= {"CacheNotWritable", "ModelNotCached", "InvalidFlag", "InvalidAdapter"}
_ASK_AGAIN_AFTER = (1.0, 2.0, 4.0)
_GIB = 1 << 30

T = TypeVar("T")


@dataclass(frozen=True)
class Wish:
    """What is to be in the cache."""

    repository: str
    revision: str
    """Branch, tag or commit."""

    keep: Collection[str] = ()
    """Commits that somebody else uses, and that stay."""

    keep_revisions: int | None = None
    """How many older commits stay besides; None removes nothing."""

    origin: Path | None = None
    """Another cache that holds it, a HF_HOME; None is the hub."""

    any_format: bool = False
    """Whether weights will do that this engine does not read."""

    is_adapter: bool = False
    """Whether it is a LoRA adapter, and no model."""


@dataclass
class Prefetch:
    """One model into the cache below `directory`, a HF_HOME."""

    directory: Path
    wish: Wish
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        self._cache = HubCache(self.directory / "hub", self.wish.repository)
        self._api = HfApi()
        self._is_over = threading.Event()
        origin = self.wish.origin
        self._origin = HubCache(origin / "hub", self.wish.repository) if origin is not None else None

    def run(self) -> Manifest:
        """Returns what is in the cache then, all of it. Raises `CheckpointError`."""
        try:
            commit = self._resolve()
            manifest = self._cache.complete(commit)
            files = manifest.files if manifest is not None else ()
            if manifest is None or not self._is_enough(files):
                # one repository may be a model, and an adapter besides
                manifest, files = None, tuple({file.path: file for file in (*files, *self._files(commit))}.values())
            if not self.wish.any_format and not self.wish.is_adapter:
                check_format(self._name, files)
            since = self._cache.touch(commit)
            if manifest is None:
                since = self._cache.begin(commit, files)
                self._check_space(commit, files, since)
                manifest = self._download(commit, files)
            self._cache.remember(self.wish.revision, commit)
            self._make_room(commit, since)
        except HUB_ERRORS as error:
            raise self._explained(error) from error
        self.progress.expect(manifest.size)
        for file in manifest.files:
            self.progress.tell(file.path, file.size)
        return manifest

    def snapshot(self, manifest: Manifest) -> Path:
        """The directory to load from."""
        return self._cache.snapshot(manifest.commit)

    @property
    def _name(self) -> str:
        return self.wish.repository

    def _files(self, commit: str) -> Sequence[HubFile]:
        """What the snapshot has to consist of."""
        if self._origin is None:
            there = self._ask(lambda: list_files(self._api, self._name, commit))
            if self.wish.is_adapter:
                return needed_of_adapter(self._name, there, any_format=self.wish.any_format)
            return needed(self._name, there)
        manifest = self._origin.complete(commit)
        if manifest is None or not self._is_enough(manifest.files):
            raise self._not_there()
        return manifest.files

    def _is_enough(self, files: Sequence[HubFile]) -> bool:
        """Whether a snapshot of these files is what is wanted: an adapter is no model, nor has each model one."""
        if self.wish.is_adapter:
            return has_adapter(files, any_format=self.wish.any_format)
        return not is_adapter(files)

    def _not_there(self) -> CheckpointError:
        return CheckpointError("ModelNotCached", f"{self._name} at {self.wish.revision} is not in {self.wish.origin}")

    def _resolve(self) -> str:
        """The commit that is wanted. A hub that is away is no matter where the cache holds what it last said."""
        if COMMIT.fullmatch(self.wish.revision):
            return self.wish.revision
        if self._origin is not None:
            known = self._origin.commit_of(self.wish.revision)
            if known is None:
                raise self._not_there()
            return known
        try:
            found = self._ask(lambda: self._api.repo_info(self._name, revision=self.wish.revision).sha)
        except HUB_ERRORS as error:
            known = self._cache.commit_of(self.wish.revision)
            if not is_passing(error) or known is None or self._cache.complete(known) is None:
                raise
            log.warning("%s cannot be asked, and %s was last seen at %s", constants.ENDPOINT, self.wish.revision, known)
            return known
        if found is None:
            raise CheckpointError("DownloadFailed", f"{constants.ENDPOINT} names no commit of {self._name}")
        return found

    def _ask(self, question: Callable[[], T]) -> T:
        """Ask the hub, and once more where it may be busy only for a moment."""
        for seconds in _ASK_AGAIN_AFTER:
            try:
                return question()
            except HUB_ERRORS as error:
                if not is_passing(error):
                    raise
                log.warning("%s does not answer; asking again", constants.ENDPOINT)
                time.sleep(seconds)
        return question()

    def _check_space(self, commit: str, files: Sequence[HubFile], since: float) -> None:
        missing = self._missing(commit, files)
        if missing > self._free():
            self._make_room(commit, since)
        free = self._free()
        if missing > free:
            raise CheckpointError(
                "CacheFull",
                f"{self._name} needs {_gib(missing)} more, and {self.directory} has {_gib(free)} free of "
                f"{_gib(shutil.disk_usage(self.directory).total)}: enlarge the volume, or remove what is not needed",
            )

    def _missing(self, commit: str, files: Sequence[HubFile]) -> int:
        absent = {file.digest: file for file in files if not self._cache.has(commit, file)}
        return sum(file.size - self._cache.bytes_of(file) for file in absent.values())

    def _free(self) -> int:
        return shutil.disk_usage(self.directory).free

    def _make_room(self, commit: str, since: float) -> None:
        if self.wish.keep_revisions is None:
            return
        old = self._cache.superseded(commit, self.wish.keep, self.wish.keep_revisions, since)
        if old:
            log.info("removing older revisions of %s: %s", self._name, ", ".join(old))
        self._cache.remove(old)

    def _download(self, commit: str, files: Sequence[HubFile]) -> Manifest:
        self.progress.expect(sum(file.size for file in files))
        verified = self._cache.verified()
        begun = time.monotonic()
        # the largest first, so that it is not the last one to end alone
        order = sorted(files, key=lambda file: -file.size)
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            tasks = [pool.submit(self._provide, commit, file, verified) for file in order]
            done = wait(tasks, return_when=FIRST_EXCEPTION).done
            self._is_over.set()
            pool.shutdown(cancel_futures=True)
        for task in done:
            task.result()
        lacking = [file.path for file in files if not self._cache.has(commit, file)]
        if lacking:
            raise OSError(errno.ENOENT, f"{lacking[0]} was removed from the cache meanwhile")
        log.info("%s at %s is in the cache after %.1f s", self._name, commit, time.monotonic() - begun)
        return self._cache.finish(commit, files)

    def _provide(self, commit: str, file: HubFile, verified: Collection[str]) -> None:
        """Have one file in the snapshot."""
        there = self._cache.where(commit, file)
        if there is not None and file.digest not in verified and _digest(there, file) != file.digest:
            log.warning("%s of an earlier download is broken, and fetched anew", file.path)
            there.unlink(missing_ok=True)
            there = None
        if there is None:
            fetch(self._cache, file, self._content(commit, file), partial(self._told, file))
        if not self._cache.has(commit, file):
            self._cache.link(commit, file)
        self._told(file, file.size)
        self._cache.touch(commit)

    def _content(self, commit: str, file: HubFile) -> Origin:
        if self._origin is None:
            return partial(from_hub, self._name, commit, file.path)
        return partial(from_disk, self._origin.snapshot(commit) / file.path)

    def _told(self, file: HubFile, there: int) -> None:
        if self._is_over.is_set() and there < file.size:
            raise InterruptedError("another file could not be had")
        self.progress.tell(file.path, there)

    def _explained(self, error: Exception) -> CheckpointError:
        number = error.errno if isinstance(error, OSError) else None
        if number in (errno.ENOSPC, errno.EDQUOT):
            free = f"{_gib(self._free())} free"
            return CheckpointError(
                "CacheFull",
                f"{self._name} does not fit into {self.directory}, which has {free}: enlarge the volume, or remove "
                "what is not needed",
            )
        if number in (errno.EACCES, errno.EPERM, errno.EROFS):
            return CheckpointError(
                "CacheNotWritable",
                f"{self.directory} cannot be written by user {os.getuid()}, group {os.getgid()} "
                f"({os.strerror(number or 0)}): let that user write to it",
            )
        return explain(error, self._name, self.wish.revision)


def _digest(path: Path, file: HubFile) -> str:
    hasher = file.hasher()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            hasher.update(chunk)
    return str(hasher.hexdigest())


def _gib(size: int) -> str:
    return f"{size / _GIB:.2f} GiB"


def run_prefetch(directory: Path, wish: Wish, progress_port: int | None) -> int:
    """Fetch, tell how far it is, and leave what became of it as the last words. Returns the exit status."""
    prefetch = Prefetch(directory, wish)
    try:
        if progress_port is not None:
            serve_progress(prefetch.progress, progress_port)
        manifest = prefetch.run()
    except CheckpointError as error:
        return give_up(f"{error.reason}: {error}", WAITING_WILL_NOT_HELP if error.reason in _FOR_SOMEBODY_TO_ACT else 1)
    except OSError as error:
        return give_up(f"AddressInUse: port {progress_port} cannot be had ({error.strerror}): name another")
    # read by the operator, which otherwise could not know which commit a branch was
    leave(json.dumps({"commit": manifest.commit, "bytes": manifest.size}))
    sys.stdout.write(f"{prefetch.snapshot(manifest)}\n")
    return 0
