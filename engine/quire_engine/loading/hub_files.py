"""The files of a repository on the hub: which of them serving needs, and how each is known to be whole."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.hf_api import RepoFile

from quire_engine.loading.errors import CheckpointError
from quire_engine.loading.hub import ADAPTER_FILES, CONFIG_FILES, IGNORED_FILES, MODULE_FILES, WEIGHT_FILES
from quire_engine.memory_plan.image_adapter import SETTINGS, WEIGHTS
from quire_engine.memory_plan.weight_files import CONVERT

_SHA256_DIGITS = 64

_WEIGHTS = (WEIGHT_FILES, ("consolidated*.safetensors",), ("*.bin",), ("*.pt", "*.pth"))
"""Layouts of the same weights, the one that is wanted most first."""

_NOT_WEIGHTS = ("training_args.bin", "optimizer.*", "scheduler.*")

_WEIGHTS_OF_ADAPTERS = (WEIGHTS, "adapter_model.bin", "adapter_model.pt")
"""The same, of a LoRA adapter."""


@dataclass(frozen=True)
class HubFile:
    """A file of one commit."""

    path: str
    size: int
    digest: str
    """sha256 of what git keeps elsewhere (64 digits), git's own sha1 of what it keeps itself (40). Names its blob."""

    def hasher(self) -> Any:
        """What `digest` is computed with, ready for the file's content."""
        if len(self.digest) == _SHA256_DIGITS:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)


def list_files(api: HfApi, repository: str, commit: str) -> list[HubFile]:
    """All files of a commit. Raises what huggingface_hub raises."""
    entries = api.list_repo_tree(repository, recursive=True, revision=commit)
    return [_file(entry) for entry in entries if isinstance(entry, RepoFile)]


def needed(repository: str, files: Iterable[HubFile]) -> list[HubFile]:
    """Configuration, tokenizer, and the weights in one layout. Raises `CheckpointError` where there are no weights."""
    everything = list(files)
    at_root = [file for file in everything if "/" not in file.path]
    for layout in _WEIGHTS:
        if weights := _weights(at_root, layout):
            config = [f for f in at_root if _matches(f, CONFIG_FILES) and not _matches(f, IGNORED_FILES)]
            modules = [f for f in everything if _matches(f, (*MODULE_FILES, *ADAPTER_FILES))]
            return sorted({*config, *modules, *weights}, key=lambda file: file.path)
    raise CheckpointError("InvalidCheckpoint", f"{repository} has no weights: name a repository with safetensors files")


def needed_of_adapter(repository: str, files: Iterable[HubFile], *, any_format: bool) -> list[HubFile]:
    """The settings of a LoRA adapter, and its weights in one layout, which is safetensors unless `any_format`.

    Raises `CheckpointError` where there is no adapter.
    """
    there = {file.path: file for file in files}
    if has_adapter(there.values(), any_format=any_format):
        return [there[SETTINGS], next(there[path] for path in _WEIGHTS_OF_ADAPTERS if path in there)]
    lacking = WEIGHTS if SETTINGS in there else SETTINGS
    raise CheckpointError(
        "InvalidAdapter",
        f"{repository} has no {lacking}: name a repository that has a LoRA adapter at its root, as peft saves it",
    )


def has_adapter(files: Iterable[HubFile], *, any_format: bool) -> bool:
    """Whether a LoRA adapter is among `files`, in safetensors unless `any_format`."""
    there = {file.path for file in files}
    return SETTINGS in there and not there.isdisjoint(_WEIGHTS_OF_ADAPTERS if any_format else (WEIGHTS,))


def is_adapter(files: Iterable[HubFile]) -> bool:
    """Whether `files` are those of an adapter alone."""
    return {file.path for file in files} <= {SETTINGS, *_WEIGHTS_OF_ADAPTERS}


def check_format(repository: str, files: Iterable[HubFile]) -> None:
    """Raise `CheckpointError` where none of `files`, those that `needed` gave, has weights that this engine reads."""
    everything = list(files)
    if _weights(everything, WEIGHT_FILES):
        return
    others = [file.path for layout in _WEIGHTS for file in _weights(everything, layout)]
    found = f", only {others[0]}" if others else ""
    raise CheckpointError(
        "InvalidCheckpoint",
        f"{repository} has no safetensors files that this engine reads{found}: name a repository that has them, or "
        f"{CONVERT}",
    )


def _weights(files: Iterable[HubFile], layout: tuple[str, ...]) -> list[HubFile]:
    ignored = (*(IGNORED_FILES if layout is WEIGHT_FILES else ()), *_NOT_WEIGHTS)
    return [file for file in files if _matches(file, layout) and not _matches(file, ignored)]


def _file(entry: RepoFile) -> HubFile:
    if entry.lfs is not None:
        return HubFile(entry.path, entry.lfs.size, entry.lfs.sha256)
    return HubFile(entry.path, entry.size, entry.blob_id)


def _matches(file: HubFile, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(file.path, pattern) for pattern in patterns)
