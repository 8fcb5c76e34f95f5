"""The cache of one repository, in the layout of huggingface_hub, which is what reads it afterwards.

    HUB/models--ORG--NAME/blobs/DIGEST            content, whole; DIGEST.part while it is being fetched
    HUB/models--ORG--NAME/snapshots/COMMIT/FILE   links to blobs
    HUB/models--ORG--NAME/refs/BRANCH             the commit that a branch was last seen at
    HUB/models--ORG--NAME/.quire/COMMIT.json      the manifest of a snapshot that was fetched here

Nothing is locked: a claim is a network's file system, where locks may hold nobody off. What two processes write at once
is the same, because a blob is named by its content, and everything takes its final name by a rename.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from quire_engine.loading.hub_files import HubFile

COMMIT = re.compile(r"[0-9a-f]{40}")

_ABANDONED_SECONDS = 86400.0
"""After which a download that nobody goes on with is no download any more."""


@dataclass(frozen=True)
class Manifest:
    """What a snapshot consists of."""

    commit: str
    files: tuple[HubFile, ...]
    is_complete: bool

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


class HubCache:
    """One repository below `hub`, the folder that HF_HUB_CACHE names."""

    def __init__(self, hub: Path, repository: str) -> None:
        self.folder = hub / f"models--{repository.replace('/', '--')}"
        self._blobs, self._snapshots = self.folder / "blobs", self.folder / "snapshots"
        self._manifests = self.folder / ".quire"

    def complete(self, commit: str) -> Manifest | None:
        """The manifest of a snapshot of which every file is there in its full size; None for any other."""
        manifest = self._read(self._manifests / f"{commit}.json")
        if manifest is None or not manifest.is_complete:
            return None
        return manifest if all(self.has(commit, file) for file in manifest.files) else None

    def commit_of(self, revision: str) -> str | None:
        """The commit that a branch or tag was last seen at."""
        try:
            text = (self.folder / "refs" / revision).read_text(encoding="utf-8").strip()
        except OSError:
            return None
        return text if COMMIT.fullmatch(text) else None

    def snapshot(self, commit: str) -> Path:
        """The directory to load from."""
        return self._snapshots / commit

    def has(self, commit: str, file: HubFile) -> bool:
        """Whether the snapshot's file is there in its full size."""
        return _size(self.snapshot(commit) / file.path) == file.size

    def where(self, commit: str, file: HubFile) -> Path | None:
        """The whole content in its final place, in this snapshot or as a blob; None where it is not there."""
        if self.has(commit, file):
            return (self.snapshot(commit) / file.path).resolve()
        return self.blob(file) if _size(self.blob(file)) == file.size else None

    def blob(self, file: HubFile) -> Path:
        """Where the content lies once it is whole."""
        return self._blobs / file.digest

    def part(self, file: HubFile) -> Path:
        """Where the content lies until then."""
        return self._blobs / f"{file.digest}.part"

    def bytes_of(self, file: HubFile) -> int:
        """How much of the content is there."""
        whole = _size(self.blob(file))
        return file.size if whole == file.size else min(file.size, _size(self.part(file)) or 0)

    def verified(self) -> set[str]:
        """Digests of content that was compared with them when it came."""
        manifests = [self._read(path) for path in self._manifests.glob("*.json")]
        return {file.digest for manifest in manifests if manifest and manifest.is_complete for file in manifest.files}

    def begin(self, commit: str, files: Sequence[HubFile]) -> float:
        """Make the folders, and write down what is going to be there. Returns when, as `touch`. Raises OSError."""
        for folder in (self._blobs, self.snapshot(commit), self._manifests):
            folder.mkdir(parents=True, exist_ok=True)
        self._write(Manifest(commit, tuple(files), is_complete=False))
        return self._touched(commit)

    def link(self, commit: str, file: HubFile) -> None:
        """Put a whole blob into the snapshot. Raises OSError."""
        target = self.snapshot(commit) / file.path
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        try:
            if "/" in file.path:
                target.parent.mkdir(exist_ok=True)
            temporary.symlink_to(os.path.relpath(self.blob(file), target.parent))
        except FileNotFoundError:
            raise
        except OSError:
            # a file system without links: the snapshot has the file itself
            self.blob(file).replace(target)
        else:
            temporary.replace(target)

    def finish(self, commit: str, files: Sequence[HubFile]) -> Manifest:
        """Write down that everything is there. Raises OSError."""
        manifest = Manifest(commit, tuple(files), is_complete=True)
        self._write(manifest)
        return manifest

    def touch(self, commit: str) -> float:
        """Somebody wants this snapshot as of now, which is returned: seconds by the clock of the file system."""
        with contextlib.suppress(OSError):
            os.utime(self._manifests / f"{commit}.json")
        return self._touched(commit)

    def remember(self, revision: str, commit: str) -> None:
        """Write down at which commit a branch or tag was seen. Raises OSError."""
        file = self.folder / "refs" / revision
        if revision == commit or self.commit_of(revision) == commit:
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(file, commit)

    def superseded(self, present: str, keep: Collection[str], number: int, since: float) -> list[str]:
        """Commits fetched here that can go: all but `present`, `keep`, and the `number` last wanted of the others.

        What somebody has wanted `since` then stays, and so does what is still being fetched.
        """
        others = {path.stem for path in self._manifests.glob("*.json")} - {present, *keep}
        last_first = sorted(others, key=self._touched, reverse=True)
        complete = [commit for commit in last_first if self.complete(commit) is not None]
        abandoned = [c for c in last_first if c not in complete and self._touched(c) < since - _ABANDONED_SECONDS]
        return [c for c in complete[number:] if self._touched(c) < since] + abandoned

    def remove(self, commits: Iterable[str]) -> None:
        """Remove snapshots, and content that no other snapshot refers to. Raises OSError."""
        for commit in commits:
            manifest = self._read(self._manifests / f"{commit}.json")
            (self._manifests / f"{commit}.json").unlink(missing_ok=True)
            shutil.rmtree(self.snapshot(commit), ignore_errors=True)
            used = self._referred_to()
            for file in manifest.files if manifest else ():
                if file.digest not in used:
                    self.blob(file).unlink(missing_ok=True)
                    self.part(file).unlink(missing_ok=True)

    def _referred_to(self) -> set[str]:
        """Digests that a snapshot links to, or that a manifest names: a download under way relies on those too."""
        linked = {Path(os.readlink(path)).name for path in self._snapshots.glob("*/**/*") if path.is_symlink()}
        manifests = [self._read(path) for path in self._manifests.glob("*.json")]
        return linked | {file.digest for manifest in manifests if manifest for file in manifest.files}

    def _touched(self, commit: str) -> float:
        try:
            return (self._manifests / f"{commit}.json").stat().st_mtime
        except OSError:
            return 0.0

    def _read(self, path: Path) -> Manifest | None:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            files = tuple(HubFile(**file) for file in found["files"])
            return Manifest(str(found["commit"]), files, bool(found["is_complete"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _write(self, manifest: Manifest) -> None:
        _write_whole(self._manifests / f"{manifest.commit}.json", json.dumps(asdict(manifest), indent=1))


def _write_whole(file: Path, text: str) -> None:
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
