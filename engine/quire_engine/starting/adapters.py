"""Whether a model takes adapters, and those that it begins with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from quire_engine.adapter_modules import AdapterModule, adapter_modules
from quire_engine.config import EngineConfig
from quire_engine.loading.errors import CheckpointError
from quire_engine.loading.hub import download_adapter
from quire_engine.lora.reader import AdapterReader
from quire_engine.models.decoder import DecoderSpec
from quire_engine.models.transformers_backend.spec import TransformersSpec
from quire_engine.startup_error import StartupError


def adapter_reader(config: EngineConfig, spec: DecoderSpec | TransformersSpec, *, pools: bool) -> AdapterReader | None:
    """What reads adapters for the model; None without --enable-lora. Raises `StartupError` where it takes none."""
    if not config.enable_lora:
        return None
    if isinstance(spec, TransformersSpec):
        raise StartupError(
            "InvalidFlag",
            f"{spec.shape.architecture} is run by transformers, without adapters: leave out --enable-lora",
        )
    if pools:
        raise StartupError("InvalidFlag", "models of embeddings are run without adapters: leave out --enable-lora")
    return AdapterReader(spec, config.max_lora_rank)


def starting_adapters(config: EngineConfig, reader: AdapterReader) -> Mapping[str, str]:
    """The folders of --lora-modules by name; those that are on the hub are fetched.

    Raises `StartupError` for one that cannot be had or used, before weights are read.
    """
    folders: dict[str, str] = {}
    for module in adapter_modules(config.lora_modules):
        name = module.name
        try:
            folders[name] = _folder(module, config.download_dir)
            reader.read(folders[name])
        except CheckpointError as error:
            raise StartupError(error.reason, f"--lora-modules {name}: {error}") from error
        except ValueError as error:
            raise StartupError("InvalidAdapter", f"--lora-modules {name}: {error}") from error
    return folders


def _folder(module: AdapterModule, cache: str | None) -> str:
    """Where the adapter is. Raises `CheckpointError` for one of the hub that cannot be had, and `ValueError`."""
    if _is_on_hub(module.path):
        return download_adapter(module.path, revision=module.revision, folder=cache)
    if module.revision is not None:
        raise ValueError(f"{module.path} is a folder, which has no revision: leave it out")
    return module.path


def _is_on_hub(path: str) -> bool:
    """Whether it is a name such as org/adapter, and no folder. Clients that load adapters name folders only."""
    return path.count("/") == 1 and not path.startswith((".", "~", "/")) and not Path(path).exists()
