"""Which model a checkpoint is, and whether it can be run as the flags ask."""

from __future__ import annotations

import json
from dataclasses import replace

import torch

from quire_engine.config import EngineConfig
from quire_engine.distributed.layout import Layout
from quire_engine.distributed.ranks import TensorRanks, build_for
from quire_engine.loading.checkpoint import Checkpoint
from quire_engine.loading.image_adapter import image_adapter
from quire_engine.loading.image_processor import image_settings
from quire_engine.memory_plan.architectures import makes_embeddings, tower_tensors
from quire_engine.memory_plan.image_encoders import image_sizes
from quire_engine.memory_plan.quantization import Quantization, quantization_of, served_quantization
from quire_engine.models.decoder import CausalLM, DecoderSpec
from quire_engine.models.registry import decoder_spec, embedding_spec, has_family
from quire_engine.models.transformers_backend.spec import TransformersSpec
from quire_engine.multimodal.limits import most_images
from quire_engine.multimodal.processor_kwargs import FLAG, check_processor_kwargs, processor_kwargs
from quire_engine.startup_error import StartupError


def model_spec(config: EngineConfig, checkpoint: Checkpoint) -> DecoderSpec | TransformersSpec:
    """The model as Quire or as transformers has it, for --model-impl.

    Raises `ValueError`, or `StartupError` for a flag that does not go with the model.
    """
    read = checkpoint.config
    if config.model_impl == "quire" or (config.model_impl == "auto" and has_family(read)):
        return _with_image_settings(decoder_spec(read), checkpoint, config)
    if config.mm_processor_kwargs:
        raise StartupError(
            "InvalidFlag", f"{FLAG} is set: the model is run by transformers, which takes text alone here"
        )
    return TransformersSpec.from_directory(checkpoint.directory, read, trust_remote_code=config.trust_remote_code)


def _with_image_settings(spec: DecoderSpec, checkpoint: Checkpoint, config: EngineConfig) -> DecoderSpec:
    """The same, as the files beside config.json say: how many tokens an image has, and whether it has an adapter.

    Settings of the image processor that a flag gives win over the files'. Without its encoder where no prompt may have
    images.
    """
    given = processor_kwargs(config.mm_processor_kwargs)
    try:
        check_processor_kwargs(given, {} if spec.vision is None else spec.vision.tunable, spec.shape.architecture)
    except ValueError as error:
        raise StartupError("InvalidFlag", str(error)) from error
    if spec.vision is None:
        return spec
    if most_images(config.limit_mm_per_prompt) == 0:
        return _without_images(spec)
    shape, settings = spec.shape, image_settings(checkpoint.directory) | given
    try:
        vision = spec.vision.prepared_by(settings)
    except ValueError as error:
        if not given:
            raise
        raise StartupError("InvalidFlag", f"with {FLAG} {json.dumps(given)}: {error}") from error
    sizes = image_sizes(checkpoint.config, shape.architecture, shape.hidden_size, settings)
    if sizes is not None:
        shape = replace(shape, image_tokens=sizes.tokens, image_elements=sizes.elements, image_pixels=sizes.pixels)
    adapted = image_adapter(checkpoint.directory, shape.architecture) is not None
    return replace(spec, shape=shape, vision=replace(vision, adapted=adapted))


def _without_images(spec: DecoderSpec) -> DecoderSpec:
    naming, towers = spec.naming, tower_tensors(spec.shape.architecture)
    return replace(
        spec,
        shape=replace(spec.shape, image_tokens=0, image_elements=0, image_pixels=0),
        naming=replace(naming, unused_prefixes=(*naming.unused_prefixes, *towers)),
        vision=None,
    )


def spec_of_embeddings(spec: DecoderSpec | TransformersSpec, longest: int | None) -> DecoderSpec:
    """The model as it makes vectors of prompts of up to `longest` tokens."""
    if isinstance(spec, TransformersSpec):
        raise ValueError(f"{spec.shape.architecture} is run by transformers, which makes no embeddings here")
    if not makes_embeddings(spec.shape.architecture):
        spec = embedding_spec(spec)
    return replace(spec, longest=min(spec.longest, longest or spec.longest))


def model_quantization(
    config: EngineConfig, checkpoint: Checkpoint, spec: DecoderSpec | TransformersSpec
) -> Quantization | None:
    """The scheme of the weights, for --quantization. Raises `ValueError` or `StartupError` where it cannot be."""
    found = quantization_of(checkpoint.config)
    try:
        served = served_quantization(config.quantization, found)
    except ValueError as error:
        raise StartupError("InvalidFlag", str(error)) from error
    if served is not None and isinstance(spec, TransformersSpec):
        raise ValueError(
            f"{spec.shape.architecture} is run by transformers, and quantized weights are not: "
            "use a checkpoint with bfloat16 weights, without --quantization"
        )
    return served


def check_layout(layout: Layout, spec: DecoderSpec | TransformersSpec) -> None:
    """Raises `StartupError` for ranks that cannot share the model, before any is started."""
    shape = spec.shape
    if layout.size == 1:
        return
    if isinstance(spec, TransformersSpec):
        raise StartupError(
            "InvalidFlag",
            f"{shape.architecture} is run by transformers, in one process: "
            "leave --tensor-parallel-size and --pipeline-parallel-size at 1",
        )
    if layout.pipeline > shape.num_layers:
        raise StartupError(
            "InvalidFlag",
            f"--pipeline-parallel-size is {layout.pipeline}: the model has {shape.num_layers} layers to share out",
        )
    try:
        with torch.device("meta"), build_for(TensorRanks(0, layout.tensor, None, layout.expert_parallel)):
            CausalLM(spec)
    except ValueError as error:
        raise StartupError("InvalidFlag", str(error)) from error
