"""Models from the Hugging Face hub, or from the mirror that HF_ENDPOINT names."""

from __future__ import annotations

import errno
import json
import os
from functools import partial
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from quire_engine.loading.errors import CheckpointError
from quire_engine.memory_plan.image_adapter import SETTINGS, WEIGHTS, adapter_weights

CONFIG_FILES = ("*.json", "*.txt", "*.jinja", "*.model", "*.tiktoken", "*.py")
WEIGHT_FILES = ("*.safetensors",)
# Copies of the weights in other layouts, which some repositories carry beside the usual one. Of folders only those of
# sentence-transformers' modules are wanted, such as 1_Pooling, and their settings alone.
MODULE_FILES = ("[0-9]_*/config.json",)
ADAPTER_FILES = ("vision-lora/adapter_config.json", "vision-lora/adapter_model.safetensors")
IGNORED_FILES = ("[!0-9]*/*", "[0-9][!_]*/*", "*/*/*", "*/*.safetensors", "consolidated*")

# What the hub's client raises for all that breaks below HTTP. It is of another package in each of its major versions.
TransportError: type[Exception] = next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")

HUB_ERRORS = (OSError, ValueError, TransportError)
"""What a call of huggingface_hub can end with."""


def download(name: str, *, revision: str | None = None, folder: str | None = None, weights: bool = True) -> str:
    """Fetch what serving needs of the model `name`, and return the directory it is in.

    What is there already is not fetched again. Raises `CheckpointError` with a reason of ModelNotFound,
    ModelGated, RevisionNotFound, NoSpaceLeft, ModelNotCached, HubUnreachable or DownloadFailed.
    """
    patterns = [*CONFIG_FILES, *(WEIGHT_FILES if weights else ())]
    fetch = partial(snapshot_download, name, revision=revision, cache_dir=folder)
    try:
        directory = fetch(allow_patterns=patterns, ignore_patterns=list(IGNORED_FILES))
        return fetch(allow_patterns=list(ADAPTER_FILES)) if _may_have_adapter(Path(directory)) else directory
    except HUB_ERRORS as error:
        raise explain(error, name, revision) from error


def download_adapter(name: str, *, revision: str | None = None, folder: str | None = None) -> str:
    """As `download`, of the LoRA adapter `name` alone: what is read of one, and no model that lies beside it."""
    try:
        return snapshot_download(name, revision=revision, cache_dir=folder, allow_patterns=[SETTINGS, WEIGHTS])
    except HUB_ERRORS as error:
        raise explain(error, name, revision) from error


def _may_have_adapter(directory: Path) -> bool:
    """Whether models of the class in `directory` have an adapter beside their weights."""
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # of which the start tells more
        return False
    return isinstance(config, dict) and adapter_weights(config) is not None


def explain(error: Exception, name: str, revision: str | None) -> CheckpointError:
    """What an error of huggingface_hub means for who wants the model `name`, with what to do about it."""
    where = constants.ENDPOINT
    has_token = bool(os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN"))
    token_hint = "the token in HF_TOKEN may not read it" if has_token else "set HF_TOKEN if it is private or gated"
    chain = _chain(error)
    status = status_of(error)
    if any(isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT) for e in chain):
        return CheckpointError("NoSpaceLeft", f"{name}: no space is left for the download: {error}; use a larger disk")
    if any(isinstance(e, HFValidationError) for e in chain):
        return CheckpointError("ModelNotFound", f"{name!r} is neither a directory nor a name such as org/model")
    if any(isinstance(e, RevisionNotFoundError) for e in chain):
        return CheckpointError("RevisionNotFound", f"{name} has no revision {revision!r} at {where}: check --revision")
    if status in (401, 403) or any(isinstance(e, GatedRepoError) for e in chain):
        return CheckpointError("ModelGated", f"{where} refuses {name} ({status or 403}): {token_hint}")
    if any(isinstance(e, RepositoryNotFoundError) for e in chain):
        return CheckpointError("ModelNotFound", f"{name} is not at {where} (404): check its name, and {token_hint}")
    if constants.HF_HUB_OFFLINE:
        return CheckpointError(
            "ModelNotCached",
            f"{name} at {revision or 'main'} is not in the cache, and with HF_HUB_OFFLINE no hub is asked: fill the "
            "cache by `quire-engine prefetch`, or name a directory",
        )
    if is_passing(error) or any(isinstance(e, LocalEntryNotFoundError | ConnectionError) for e in chain):
        return CheckpointError(
            "HubUnreachable", f"{name}: {where} cannot be reached, or breaks off, and the cache does not hold it"
        )
    return CheckpointError("DownloadFailed", f"{name} could not be downloaded from {where}: {_first_line(error)}")


def status_of(error: Exception) -> int | None:
    """The HTTP status that an error comes from; None where there was no answer."""
    return next((e.response.status_code for e in _chain(error) if isinstance(e, HfHubHTTPError) and e.response), None)


def is_passing(error: Exception) -> bool:
    """Whether the hub may answer otherwise a moment later: no answer, one that broke off, or a busy server's."""
    status = status_of(error)
    if status is not None:
        return status in (408, 429) or status >= 500
    return isinstance(error, TransportError)


def _chain(error: BaseException | None) -> list[BaseException]:
    """The error and what it came from."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
