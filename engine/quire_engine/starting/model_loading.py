"""A model with its weights, on its device."""

from __future__ import annotations

import torch

from quire_engine.config import EngineConfig
from quire_engine.distributed.place import Place
from quire_engine.distributed.ranks import build_for
from quire_engine.kernels.large_pages import move_to_large_pages
from quire_engine.layers.linear import create_weights, finish_weights
from quire_engine.loading.checkpoint import Checkpoint
from quire_engine.loading.image_adapter import MethodFor, image_adapter, with_adapter
from quire_engine.loading.readers import readers_for
from quire_engine.loading.transformers_weights import draw_transformers, load_transformers
from quire_engine.loading.weights import draw_weights, load_weights, stored_tensors
from quire_engine.memory_plan.quantization import Quantization
from quire_engine.models.decoder import CausalLM, DecoderSpec
from quire_engine.models.language_model import LanguageModel
from quire_engine.models.transformers_backend.one_at_a_time import OneAtATime
from quire_engine.models.transformers_backend.rehearsal import rehearse
from quire_engine.models.transformers_backend.spec import TransformersSpec
from quire_engine.quantization.choice import methods_for, naming_with


def load_model(
    config: EngineConfig,
    spec: DecoderSpec,
    checkpoint: Checkpoint,
    quantization: Quantization | None,
    dtype: torch.dtype,
    device: torch.device,
    place: Place,
) -> LanguageModel:
    """This rank's share of a model of Quire's own families. Raises `CheckpointError` or `ValueError`."""
    naming, dummy = spec.naming, config.load_format == "dummy"
    adapter = None if spec.vision is None else image_adapter(checkpoint.directory, spec.shape.architecture)
    method_for: MethodFor | None = None
    if quantization is not None:
        method_for = methods_for(quantization, None if dummy else stored_tensors(checkpoint.directory, naming))
        naming = naming_with(quantization, naming)
    if adapter is not None:
        method_for = with_adapter(adapter, naming, method_for)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device), build_for(place.tensor_ranks, place.stage):
            model = CausalLM(spec).eval()
            create_weights(model, method_for)
        move_to_large_pages(model)
        whole = model
        if place.layout.size > 1:  # a rank need not have a part of every tensor
            with torch.device("meta"):
                whole = CausalLM(spec)
                create_weights(whole, method_for)
    except (TypeError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise
        # torch's word on sizes that no tensor has
        raise ValueError(f"config.json describes a layer that cannot be: {str(error).splitlines()[0]}") from error
    finally:
        torch.set_default_dtype(before)
    if dummy:
        draw_weights(model, config.seed)
    else:
        more = () if adapter is None else (adapter.file,)
        load_weights(model, checkpoint.directory, naming, whole, more, readers_for(device, place.layout.per_node))
    finish_weights(model)
    return model


def load_by_transformers(
    config: EngineConfig,
    spec: TransformersSpec,
    checkpoint: Checkpoint,
    max_model_len: int,
    dtype: torch.dtype,
    device: torch.device,
) -> LanguageModel:
    """A model that transformers runs, with paged attention where that answers the same. Raises as `load_model`."""
    trust = config.trust_remote_code
    if config.load_format == "dummy":
        loaded = draw_transformers(spec, dtype, device, config.seed, trust_remote_code=trust)
    else:
        loaded = load_transformers(spec, checkpoint.directory, dtype, device, trust_remote_code=trust)
    model = rehearse(loaded, spec.shape)
    if isinstance(model, OneAtATime):
        model.measure(max_model_len)
    return model
