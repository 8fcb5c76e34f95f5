"""The core's settings, from the flags and the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from quire_engine.config import EngineConfig
from quire_engine.core.core_config import CoreConfig
from quire_engine.core.images import TEXT_ALONE
from quire_engine.core.pooling import Pooling
from quire_engine.loading.checkpoint import Checkpoint
from quire_engine.loading.generation_config import eos_token_ids
from quire_engine.loading.tokenizer_eos import tokenizer_eos
from quire_engine.memory_plan.model_shape import ModelShape
from quire_engine.memory_plan.plan import TOKENS_PER_STEP
from quire_engine.models.decoder import DecoderSpec
from quire_engine.models.transformers_backend.spec import TransformersSpec
from quire_engine.multimodal.limits import most_images
from quire_engine.startup_error import StartupError


def core_settings(
    config: EngineConfig,
    spec: DecoderSpec | TransformersSpec,
    checkpoint: Checkpoint,
    generation: Mapping[str, object],
    device: torch.device,
) -> CoreConfig:
    """The core's settings, still without pages. Raises `StartupError` that names a flag."""
    longest = spec.longest
    max_model_len = config.max_model_len or longest
    if max_model_len > longest:
        raise StartupError("InvalidFlag", f"--max-model-len is {max_model_len}: the model's positions end at {longest}")
    if max_model_len < 2:
        raise StartupError("InvalidFlag", "--max-model-len is 1: it must be at least 2, to hold a prompt and an answer")
    budget = config.max_num_batched_tokens or TOKENS_PER_STEP[device.type]
    if not config.enable_chunked_prefill and budget < max_model_len:
        if config.max_num_batched_tokens is not None:
            raise StartupError(
                "InvalidFlag",
                f"--max-num-batched-tokens is {budget} and --no-enable-chunked-prefill runs prompts whole: "
                f"raise it to --max-model-len, {max_model_len}, or leave chunked prefill on",
            )
        budget = max_model_len
    most = most_images(config.limit_mm_per_prompt)
    return CoreConfig(
        num_blocks=0,
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=budget,
        enable_chunked_prefill=config.enable_chunked_prefill,
        enable_prefix_caching=config.enable_prefix_caching,
        max_model_len=max_model_len,
        vocab_size=spec.shape.vocab_size,
        eos_token_ids=_ends(config, checkpoint, generation, spec.shape.vocab_size),
        seed=config.seed,
        use_priority=config.scheduling_policy == "priority",
        rotation=spec.rotation if isinstance(spec, DecoderSpec) else None,
        num_stages=config.pipeline_parallel_size,
        runs_ahead=config.overlaps(device.type),
        max_adapters=config.max_loras if config.enable_lora else 0,
        adapter_room=config.adapter_room if config.enable_lora else 0,
        images=None if spec.vision is None else spec.vision.in_prompts(most),
        no_images=TEXT_ALONE if most else "--limit-mm-per-prompt allows no images",
    )


def _ends(
    config: EngineConfig, checkpoint: Checkpoint, generation: Mapping[str, object], vocab_size: int
) -> tuple[int, ...]:
    """The tokens that end an answer: those of the model's files, and the tokenizer's own.

    Who tunes a model to another chat format may change the tokenizer's alone.
    """
    ends = list(eos_token_ids(generation, checkpoint.config))
    tokenizer = checkpoint.directory if config.tokenizer is None else Path(config.tokenizer).expanduser()
    own = tokenizer_eos(tokenizer)
    if own is not None:
        ends.append(own)
    return tuple(dict.fromkeys(token for token in ends if 0 <= token < vocab_size))


def with_pooling(core_config: CoreConfig, shape: ModelShape, pooling: Pooling) -> CoreConfig:
    """Settings of a model of vectors: encoders run prompts whole, and what counts all tokens computes all of them."""
    if shape.kv_width == 0:
        budget = max(core_config.max_num_batched_tokens, core_config.max_model_len)
        core_config = replace(core_config, enable_chunked_prefill=False, max_num_batched_tokens=budget)
    caches = core_config.enable_prefix_caching and shape.kv_width > 0 and pooling.over == "last"
    return replace(core_config, enable_prefix_caching=caches, pooling=pooling, runs_ahead=False)


def one_at_a_time(core_config: CoreConfig) -> CoreConfig:
    """Room for one request, whose prompt is computed in one step."""
    return replace(
        core_config,
        max_num_seqs=1,
        max_num_batched_tokens=core_config.max_model_len,
        enable_chunked_prefill=False,
        enable_prefix_caching=False,
        runs_ahead=False,
    )
