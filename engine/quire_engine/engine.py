"""Puts an engine together: model, memory, executor, core."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from quire_engine.config import EngineConfig
from quire_engine.core.core_config import CoreConfig
from quire_engine.core.loop import EngineCore
from quire_engine.core.messages import EngineInfo, Vocabulary
from quire_engine.core.step_profile import NO_PROFILE, StepProfile
from quire_engine.distributed.layout import Layout
from quire_engine.distributed.leader import Leader
from quire_engine.distributed.place import Place
from quire_engine.execution.cuda_graphs import capture_for
from quire_engine.execution.device import DTYPES, device_memory, limit_threads, pick_device, pick_dtype
from quire_engine.execution.model_runner import ModelRunner, warm_up
from quire_engine.execution.ranked_executor import RankedExecutor
from quire_engine.failure import failure_of
from quire_engine.kernels.compiling import Compiling, watch_compiling
from quire_engine.kernels.report import kernels_of
from quire_engine.loading.checkpoint import Checkpoint
from quire_engine.loading.generation_config import generation_config, sampling_defaults
from quire_engine.loading.image_processor import ImageProcessor
from quire_engine.loading.sentence_transformers import pooling_of
from quire_engine.loading.weights import check_size
from quire_engine.lora.adapted_model import AdaptedModel
from quire_engine.lora.reader import AdapterReader
from quire_engine.memory_plan.plan import MemoryPlan, plan_memory
from quire_engine.models.decoder import DecoderSpec
from quire_engine.models.transformers_backend.spec import TransformersSpec
from quire_engine.multimodal.preparation import ImagePreparer
from quire_engine.starting.adapters import adapter_reader, starting_adapters
from quire_engine.starting.core_settings import core_settings, one_at_a_time, with_pooling
from quire_engine.starting.memory import memory_request, model_runner, window_of_all_layers
from quire_engine.starting.model_choice import check_layout, model_quantization, model_spec, spec_of_embeddings
from quire_engine.starting.model_loading import load_by_transformers, load_model
from quire_engine.starting.phases import OnPhase, Phases
from quire_engine.startup_error import StartupError
from quire_engine.structured.grammars import CompiledGrammars
from quire_engine.structured.vocabulary import read_vocabulary, written_vocabulary
from quire_engine.text.token_bytes import TokenBytes
from quire_engine.text.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from llguidance import LLTokenizer
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

OnLost = Callable[[str], None]
OnModel = Callable[[str, int], None]
"""Hears the model's directory and its number of tokens, before the weights are loaded. May raise `StartupError`."""

_WARM_UP_TOKENS = {"cpu": 64, "cuda": 8192}


class Ranks(Protocol):
    """The way to the other ranks of a model, from one of them."""

    rank: int
    layout: Layout

    def gather(self, model: str, device: torch.device) -> Place:
        """Meet the others, those of this node with the model's directory."""
        ...


@dataclass(frozen=True)
class BuiltRank:
    """One rank's share of a model, loaded, with its memory allocated."""

    runner: ModelRunner
    core_config: CoreConfig
    plan: MemoryPlan
    info: EngineInfo
    phase: Phases
    images: ImagePreparer | None  # of rank 0, where the model takes images
    adapters: AdapterReader | None  # of rank 0, where it takes adapters
    adapter_folders: Mapping[str, str]  # by name, of those that it begins with
    records: bool  # whether steps may be recorded
    compiling: Compiling | None  # of kernels for this device, where there are any


@dataclass
class Learned:
    """What the process around an engine may tell it once it is there."""

    vocabulary: Vocabulary | None = None


def build_engine(
    config: EngineConfig,
    on_phase: OnPhase | None = None,
    on_lost: OnLost | None = None,
    on_model: OnModel | None = None,
    learned: Learned | None = None,
) -> tuple[EngineCore, EngineInfo]:
    """Load the model, plan and allocate its memory, and warm it up.

    `learned` is where a vocabulary may come to be, for an engine that should load no tokenizer.
    `on_phase` hears the name and the seconds of each part of the start: device, config, ranks, weights, memory,
    warm-up, and on a GPU graphs. `on_lost` hears the cause, in a thread, when another rank has gone: see `Leader`.
    Raises `StartupError` for everything that the user can put right.
    """
    if config.node_rank > 0:
        raise StartupError("InvalidFlag", f"--node-rank is {config.node_rank}: only node 0 runs an engine by itself")
    if Layout.of(config).size == 1:
        built = build_rank(config, None, on_phase, on_model)
        return _started(config, built, built.runner, learned or Learned())
    leader = Leader(config, on_lost)
    try:
        built = build_rank(config, leader, on_phase, on_model)
        return _started(config, built, RankedExecutor(built.runner, leader), learned or Learned())
    except StartupError as error:
        leader.close(str(error))
        raise
    except Exception as error:
        cause = leader.blame(error)
        leader.close(failure_of(cause))
        raise cause from error


def build_rank(
    config: EngineConfig, ranks: Ranks | None, on_phase: OnPhase | None = None, on_model: OnModel | None = None
) -> BuiltRank:
    """As `build_engine`, for one rank and without the warm-up. `ranks` are the others, where there are any."""
    phase = Phases(on_phase)
    layout, rank = (ranks.layout, ranks.rank) if ranks is not None else (Layout(), 0)
    with phase("device", "InvalidFlag"):
        device = pick_device(config.device, layout.local_rank(rank), layout.per_node)
        threads = limit_threads(layout.per_node)
        compiling = watch_compiling(device)
    with phase("config", "UnsupportedModel"):
        checkpoint = Checkpoint.open(
            config.model,
            revision=config.revision,
            download_dir=config.download_dir,
            weights=config.load_format != "dummy",
        )
        spec = model_spec(config, checkpoint)
        pooling, longest_prompt = pooling_of(checkpoint, spec.shape, config.task)
        if pooling is not None:
            spec = spec_of_embeddings(spec, longest_prompt)
        if config.load_format != "dummy":
            more = 0 if spec.vision is None else spec.vision.num_elements
            check_size(spec.shape, checkpoint.directory, more)
        quantization = model_quantization(config, checkpoint, spec)
        dtype = pick_dtype(config.dtype, spec.shape.dtype, device)
        generation = generation_config(checkpoint, config.generation_config)
        defaults = sampling_defaults(generation)
        core_config = core_settings(config, spec, checkpoint, generation, device)
        if pooling is not None:
            core_config = with_pooling(core_config, spec.shape, pooling)
        processor = None
        if rank == 0:
            if spec.vision is not None and core_config.images is not None:
                processor = ImageProcessor(checkpoint.directory, spec.vision, DTYPES[dtype])
            check_layout(layout, spec)
        reader = adapter_reader(config, spec, pools=pooling is not None)
        adapter_folders: Mapping[str, str] = {}
        if reader is not None and rank == 0:
            adapter_folders = starting_adapters(config, reader)
    if on_model is not None:
        on_model(str(checkpoint.directory), spec.shape.vocab_size)
    place = Place()
    if ranks is not None:
        with phase("ranks", "EngineFailed"):
            place = ranks.gather(str(checkpoint.directory), device)
    resident = device_memory(device).used
    with phase("weights", "InvalidCheckpoint"):
        if isinstance(spec, TransformersSpec):
            model = load_by_transformers(config, spec, checkpoint, core_config.max_model_len, DTYPES[dtype], device)
        else:
            model = load_model(config, spec, checkpoint, quantization, DTYPES[dtype], device, place)
    adapted = None
    if reader is not None and isinstance(spec, DecoderSpec):
        adapted = AdaptedModel(model, spec.naming, DTYPES[dtype], device)
    if not model.batches:
        core_config = one_at_a_time(core_config)
    with phase("memory", "InsufficientMemory"):
        adapter_file = 0 if reader is None else reader.num_bytes
        plan = plan_memory(
            memory_request(config, core_config, model, dtype, device, resident, place, adapted, adapter_file)
        )
        # Pages are the same everywhere: what one rank has no room for, no rank can use.
        plan = plan.with_blocks(place.least(plan.num_blocks), place.least(plan.num_swap_blocks))
        # A rank knows the windows of its own layers alone.
        window = window_of_all_layers(model) if config.pipeline_parallel_size == 1 else None
        core_config = replace(
            core_config, num_blocks=plan.num_blocks, num_swap_blocks=plan.num_swap_blocks, window=window
        )
        capture = None if config.enforce_eager or core_config.pooling is not None else capture_for(device)
        runner = model_runner(core_config, model, plan, DTYPES[dtype], device, place, adapted, capture)
    log.info("%s in %s on %s, %d threads", spec.shape.architecture, dtype, device.type, threads)
    log.info("kernels: %s", kernels_of(device))
    info = EngineInfo(
        model=str(checkpoint.directory),
        max_model_len=core_config.max_model_len,
        vocab_size=spec.shape.vocab_size,
        eos_token_ids=list(core_config.eos_token_ids),
        num_blocks=plan.num_blocks,
        num_swap_blocks=plan.num_swap_blocks,
        block_size=core_config.block_size,
        dtype=dtype,
        device=device.type,
        pooling=pooling,
        images=core_config.images,
        no_images=core_config.no_images,
        sampling_defaults=defaults,
        startup_seconds=phase.seconds,
    )
    preparer = None
    if processor is not None:
        preparer = ImagePreparer(processor.prepared, processor.prepared_bytes, plan.image_room)
    own_reader = reader if rank == 0 else None
    return BuiltRank(
        runner, core_config, plan, info, phase, preparer, own_reader, adapter_folders, capture is not None, compiling
    )


def _started(
    config: EngineConfig, built: BuiltRank, executor: ModelRunner | RankedExecutor, learned: Learned
) -> tuple[EngineCore, EngineInfo]:
    """Warm up all ranks, and put the core on top of them."""
    core_config, info = built.core_config, built.info
    with built.phase("warm-up", "EngineFailed"):
        longest = min(core_config.max_num_batched_tokens, core_config.max_model_len - 1)
        pools = core_config.pooling is not None
        warm_up(executor, max(1, min(_WARM_UP_TOKENS[info.device], longest)), core_config.block_size, pools=pools)
    if built.records:
        with built.phase("graphs", "EngineFailed"):
            executor.record_decodes(int(built.plan.limit * (1 - built.plan.utilization)))
    if built.compiling is not None:
        log.info("kernels in Triton: %s", built.compiling)
    log.info("%s", built.plan.table())
    on_gpu = info.device == "cuda"
    gpu_blocks, cpu_blocks = (info.num_blocks, info.num_swap_blocks) if on_gpu else (0, info.num_blocks)
    log.info("# GPU blocks: %d, # CPU blocks: %d", gpu_blocks, cpu_blocks)

    def vocabulary() -> LLTokenizer:
        told = learned.vocabulary or written_vocabulary(_load_tokenizer(config), core_config.vocab_size)
        return read_vocabulary(told)

    grammars = CompiledGrammars(
        vocabulary,
        core_config.vocab_size,
        core_config.eos_token_ids,
        lambda: TokenBytes(_load_tokenizer(config)),
    )
    profile = NO_PROFILE
    if config.profile_steps:  # from here on: the warm-up is over
        profile = StepProfile(config.profile_steps, Path(tempfile.gettempdir()) / f"quire-steps-{os.getpid()}.json")
        built.runner.time_by(profile)
    core = EngineCore(executor, core_config, grammars, profile, built.images, built.adapters)
    for name, path in built.adapter_folders.items():
        core.load_adapter(name, path)
    return core, info


def _load_tokenizer(config: EngineConfig) -> PreTrainedTokenizerBase:
    return load_tokenizer(
        config.tokenizer or config.model,
        revision=config.revision if config.tokenizer is None else None,
        trust_remote_code=config.trust_remote_code,
        download_dir=config.download_dir,
    )
