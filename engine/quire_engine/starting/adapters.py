"""Whether a model takes adapters, and those that it begins with."""

from __future__ import annotations

from quire_engine.config import EngineConfig
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


def check_adapters(config: EngineConfig, reader: AdapterReader) -> None:
    """Raise `StartupError` for one of --lora-modules that cannot be used, before weights are read."""
    for name, path in config.adapters.items():
        try:
            reader.read(path)
        except ValueError as error:
            raise StartupError("InvalidAdapter", f"--lora-modules {name}: {error}") from error
