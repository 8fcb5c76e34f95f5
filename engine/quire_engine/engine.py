"""Puts an engine together: model, memory, executor, core."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch

from quire_engine.config import EngineConfig
from quire_engine.core.core_config import CoreConfig
from quire_engine.core.loop import EngineCore
from quire_engine.core.messages import EngineInfo
from quire_engine.core.pooling import Pooling
from quire_engine.core.step import Executor
from quire_engine.distributed.layout import Layout
from quire_engine.distributed.leader import Leader
from quire_engine.distributed.place import Place
from quire_engine.distributed.ranks import TensorRanks, build_for
from quire_engine.execution.device import DTYPES, device_memory, limit_threads, pick_device, pick_dtype
from quire_engine.execution.input_batch import InputBatch
from quire_engine.execution.kv_cache import allocate_kv_cache
from quire_engine.execution.model_runner import ModelRunner, warm_up
from quire_engine.execution.ranked_executor import RankedExecutor
from quire_engine.execution.sampling_state import SamplingState
from quire_engine.failure import failure_of
from quire_engine.layers.linear import create_weights, finish_weights
from quire_engine.loading.checkpoint import Checkpoint
from quire_engine.loading.errors import CheckpointError
from quire_engine.loading.generation_config import eos_token_ids, generation_config, sampling_defaults
from quire_engine.loading.sentence_transformers import pooling_of
from quire_engine.loading.transformers_weights import draw_transformers, load_transformers
from quire_engine.loading.weights import check_size, draw_weights, load_weights, stored_tensors
from quire_engine.memory_plan.architectures import makes_embeddings
from quire_engine.memory_plan.host_memory import memory_limit, resident_bytes
from quire_engine.memory_plan.model_shape import ModelShape
from quire_engine.memory_plan.plan import (
    GIB,
    HTTP_SERVER_BYTES,
    TOKENS_PER_STEP,
    MemoryPlan,
    MemoryRequest,
    plan_memory,
)
from quire_engine.memory_plan.quantization import Quantization, quantization_of, served_quantization
from quire_engine.models.decoder import CausalLM, DecoderSpec
from quire_engine.models.language_model import LanguageModel
from quire_engine.models.registry import decoder_spec, embedding_spec, has_family
from quire_engine.models.transformers_backend.one_at_a_time import OneAtATime
from quire_engine.models.transformers_backend.rehearsal import rehearse
from quire_engine.models.transformers_backend.spec import TransformersSpec
from quire_engine.quantization.choice import methods_for, naming_with
from quire_engine.startup_error import StartupError
from quire_engine.structured.grammars import CompiledGrammars
from quire_engine.structured.vocabulary import vocabulary_of
from quire_engine.text.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from llguidance import LLTokenizer

log = logging.getLogger(__name__)

OnPhase = Callable[[str, float], None]
OnLost = Callable[[str], None]

_WARM_UP_TOKENS = {"cpu": 64, "cuda": 8192}


class _Phases:
    """Times the parts of the start."""

    def __init__(self, on_phase: OnPhase | None) -> None:
        self.seconds: dict[str, float] = {}
        self._on_phase = on_phase

    @contextmanager
    def __call__(self, name: str, reason: str) -> Iterator[None]:
        """Time a part, and turn what is wrong with the user's input in it into a `StartupError`."""
        started = time.monotonic()
        try:
            yield
        except CheckpointError as error:
            raise StartupError(error.reason, str(error)) from error
        except ValueError as error:
            raise StartupError(reason, str(error)) from error
        except ArithmeticError as error:
            raise StartupError(reason, f"a number in config.json is out of all bounds: {error}") from error
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise StartupError("OutOfMemory", f"memory ran out during {name}: {error}") from error
        except RuntimeError as error:
            if "can't allocate memory" not in str(error):  # which is how torch says it on the CPU
                raise
            raise StartupError("OutOfMemory", f"memory ran out during {name}: {error}") from error
        self.seconds[name] = time.monotonic() - started
        log.info("%s: %.2f s", name, self.seconds[name])
        if self._on_phase is not None:
            self._on_phase(name, self.seconds[name])


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
    phase: _Phases


def build_engine(
    config: EngineConfig, on_phase: OnPhase | None = None, on_lost: OnLost | None = None
) -> tuple[EngineCore, EngineInfo]:
    """Load the model, plan and allocate its memory, and warm it up.

    `on_phase` hears the name and the seconds of each part of the start: device, config, ranks, weights, memory,
    warm-up. `on_lost` hears the cause, in a thread, when another rank has gone: see `Leader`.
    Raises `StartupError` for everything that the user can put right.
    """
    if config.node_rank > 0:
        raise StartupError("InvalidFlag", f"--node-rank is {config.node_rank}: only node 0 runs an engine by itself")
    if Layout.of(config).size == 1:
        built = build_rank(config, None, on_phase)
        return _started(config, built, built.runner)
    leader = Leader(config, on_lost)
    try:
        built = build_rank(config, leader, on_phase)
        return _started(config, built, RankedExecutor(built.runner, leader))
    except StartupError as error:
        leader.close(str(error))
        raise
    except Exception as error:
        cause = leader.blame(error)
        leader.close(failure_of(cause))
        raise cause from error


def build_rank(config: EngineConfig, ranks: Ranks | None, on_phase: OnPhase | None = None) -> BuiltRank:
    """As `build_engine`, for one rank and without the warm-up. `ranks` are the others, where there are any."""
    phase = _Phases(on_phase)
    layout, rank = (ranks.layout, ranks.rank) if ranks is not None else (Layout(), 0)
    with phase("device", "InvalidFlag"):
        device = pick_device(config.device, layout.local_rank(rank), layout.per_node)
        threads = limit_threads(layout.per_node)
    with phase("config", "UnsupportedModel"):
        checkpoint = Checkpoint.open(
            config.model,
            revision=config.revision,
            download_dir=config.download_dir,
            weights=config.load_format != "dummy",
        )
        spec = _spec(config, checkpoint)
        pooling, longest_prompt = pooling_of(checkpoint, spec.shape, config.task)
        if pooling is not None:
            spec = _embedding_spec(spec, longest_prompt)
        if config.load_format != "dummy":
            check_size(spec.shape, checkpoint.directory)
        quantization = _quantization(config, checkpoint)
        if quantization is not None and isinstance(spec, TransformersSpec):
            raise ValueError(
                f"{spec.shape.architecture} is run by transformers, and quantized weights are not: "
                "use a checkpoint with bfloat16 weights, without --quantization"
            )
        dtype = pick_dtype(config.dtype, spec.shape.dtype, device)
        generation = generation_config(checkpoint, config.generation_config)
        defaults = sampling_defaults(generation)
        core_config = _core_config(config, spec, checkpoint, generation, device)
        if pooling is not None:
            core_config = _pooling(core_config, spec.shape, pooling)
        if rank == 0:
            _check_layout(layout, spec)
    place = Place()
    if ranks is not None:
        with phase("ranks", "EngineFailed"):
            place = ranks.gather(str(checkpoint.directory), device)
    resident = device_memory(device).used
    with phase("weights", "InvalidCheckpoint"):
        if isinstance(spec, TransformersSpec):
            model = _load_transformers(config, spec, checkpoint, core_config.max_model_len, DTYPES[dtype], device)
        else:
            model = _load(config, spec, checkpoint, quantization, DTYPES[dtype], device, place)
    if not model.batches:
        core_config = _one_at_a_time(core_config)
    with phase("memory", "InsufficientMemory"):
        plan = plan_memory(_memory_request(config, core_config, model, dtype, device, resident, place))
        # Pages are the same everywhere: what one rank has no room for, no rank can use.
        plan = plan.with_blocks(place.least(plan.num_blocks), place.least(plan.num_swap_blocks))
        # A rank knows the windows of its own layers alone.
        window = _window(model) if config.pipeline_parallel_size == 1 else None
        core_config = replace(
            core_config, num_blocks=plan.num_blocks, num_swap_blocks=plan.num_swap_blocks, window=window
        )
        runner = _runner(core_config, model, plan, DTYPES[dtype], device, place)
    log.info("%s in %s on %s, %d threads", spec.shape.architecture, dtype, device.type, threads)
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
        sampling_defaults=defaults,
        startup_seconds=phase.seconds,
    )
    return BuiltRank(runner, core_config, plan, info, phase)


def _started(config: EngineConfig, built: BuiltRank, executor: Executor) -> tuple[EngineCore, EngineInfo]:
    """Warm up all ranks, and put the core on top of them."""
    core_config, info = built.core_config, built.info
    with built.phase("warm-up", "EngineFailed"):
        longest = min(core_config.max_num_batched_tokens, core_config.max_model_len - 1)
        pools = core_config.pooling is not None
        warm_up(executor, max(1, min(_WARM_UP_TOKENS[info.device], longest)), core_config.block_size, pools=pools)
    log.info("%s", built.plan.table())
    on_gpu = info.device == "cuda"
    gpu_blocks, cpu_blocks = (info.num_blocks, info.num_swap_blocks) if on_gpu else (0, info.num_blocks)
    log.info("# GPU blocks: %d, # CPU blocks: %d", gpu_blocks, cpu_blocks)
    grammars = CompiledGrammars(
        partial(_load_vocabulary, config, core_config.vocab_size), core_config.vocab_size, core_config.eos_token_ids
    )
    return EngineCore(executor, core_config, grammars), info


def _check_layout(layout: Layout, spec: DecoderSpec | TransformersSpec) -> None:
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
        with build_for(TensorRanks(0, layout.tensor, None, layout.expert_parallel)):
            CausalLM(spec)  # has no memory yet
    except ValueError as error:
        raise StartupError("InvalidFlag", str(error)) from error


def _window(model: LanguageModel) -> int | None:
    """The latest positions that a token sees, where every layer has a window."""
    windows = [layer.window for layer in model.attention_layers()]
    return max((w for w in windows if w is not None), default=None) if None not in windows else None


def _load_vocabulary(config: EngineConfig, vocab_size: int) -> LLTokenizer:
    tokenizer = load_tokenizer(
        config.tokenizer or config.model,
        revision=config.revision if config.tokenizer is None else None,
        trust_remote_code=config.trust_remote_code,
        download_dir=config.download_dir,
    )
    return vocabulary_of(tokenizer, vocab_size)


def _spec(config: EngineConfig, checkpoint: Checkpoint) -> DecoderSpec | TransformersSpec:
    """The model as Quire or as transformers has it, for --model-impl. Raises `ValueError`."""
    read = checkpoint.config
    if config.model_impl == "quire" or (config.model_impl == "auto" and has_family(read)):
        return decoder_spec(read)
    return TransformersSpec.from_directory(checkpoint.directory, read, trust_remote_code=config.trust_remote_code)


def _core_config(
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
    return CoreConfig(
        num_blocks=0,
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=budget,
        enable_chunked_prefill=config.enable_chunked_prefill,
        enable_prefix_caching=config.enable_prefix_caching,
        max_model_len=max_model_len,
        vocab_size=spec.shape.vocab_size,
        eos_token_ids=tuple(i for i in eos_token_ids(generation, checkpoint.config) if 0 <= i < spec.shape.vocab_size),
        seed=config.seed,
        use_priority=config.scheduling_policy == "priority",
        rotation=spec.rotation if isinstance(spec, DecoderSpec) else None,
        num_stages=config.pipeline_parallel_size,
    )


def _embedding_spec(spec: DecoderSpec | TransformersSpec, longest: int | None) -> DecoderSpec:
    """The model as it makes vectors of prompts of up to `longest` tokens."""
    if isinstance(spec, TransformersSpec):
        raise ValueError(f"{spec.shape.architecture} is run by transformers, which makes no embeddings here")
    if not makes_embeddings(spec.shape.architecture):
        spec = embedding_spec(spec)
    return replace(spec, longest=min(spec.longest, longest or spec.longest))


def _pooling(core_config: CoreConfig, shape: ModelShape, pooling: Pooling) -> CoreConfig:
    """Settings of a model of vectors: encoders run prompts whole, and what counts all tokens computes all of them."""
    if shape.kv_width == 0:
        budget = max(core_config.max_num_batched_tokens, core_config.max_model_len)
        core_config = replace(core_config, enable_chunked_prefill=False, max_num_batched_tokens=budget)
    caches = core_config.enable_prefix_caching and shape.kv_width > 0 and pooling.over == "last"
    return replace(core_config, enable_prefix_caching=caches, pooling=pooling)


def _quantization(config: EngineConfig, checkpoint: Checkpoint) -> Quantization | None:
    found = quantization_of(checkpoint.config)
    try:
        return served_quantization(config.quantization, found)
    except ValueError as error:
        raise StartupError("InvalidFlag", str(error)) from error


def _load(
    config: EngineConfig,
    spec: DecoderSpec,
    checkpoint: Checkpoint,
    quantization: Quantization | None,
    dtype: torch.dtype,
    device: torch.device,
    place: Place,
) -> LanguageModel:
    naming, dummy = spec.naming, config.load_format == "dummy"
    method_for = None
    if quantization is not None:
        method_for = methods_for(quantization, None if dummy else stored_tensors(checkpoint.directory, naming))
        naming = naming_with(quantization, naming)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device), build_for(place.tensor_ranks, place.stage):
            model = CausalLM(spec).eval()
            create_weights(model, method_for)
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
        load_weights(model, checkpoint.directory, naming, whole)
    finish_weights(model)
    return model


def _load_transformers(
    config: EngineConfig,
    spec: TransformersSpec,
    checkpoint: Checkpoint,
    max_model_len: int,
    dtype: torch.dtype,
    device: torch.device,
) -> LanguageModel:
    trust = config.trust_remote_code
    if config.load_format == "dummy":
        loaded = draw_transformers(spec, dtype, device, config.seed, trust_remote_code=trust)
    else:
        loaded = load_transformers(spec, checkpoint.directory, dtype, device, trust_remote_code=trust)
    model = rehearse(loaded, spec.shape)
    if isinstance(model, OneAtATime):
        model.measure(max_model_len)
    return model


def _one_at_a_time(core_config: CoreConfig) -> CoreConfig:
    """Room for one request, whose prompt is computed in one step."""
    return replace(
        core_config,
        max_num_seqs=1,
        max_num_batched_tokens=core_config.max_model_len,
        enable_chunked_prefill=False,
        enable_prefix_caching=False,
    )


def _memory_request(
    config: EngineConfig,
    core_config: CoreConfig,
    model: LanguageModel,
    dtype: str,
    device: torch.device,
    resident: int,
    place: Place,
) -> MemoryRequest:
    layout, shape = place.layout, model.shape.shard(place.layout.tensor)
    on_gpu = device.type == "cuda"
    limit = device_memory(device).limit
    num_blocks = config.num_gpu_blocks_override
    swap_space = None if config.swap_space is None else int(config.swap_space * GIB)
    if not model.batches:  # one request, which has its room and is never preempted
        num_blocks, swap_space = -(-core_config.max_model_len // config.block_size), 0
    if core_config.pooling is not None and not core_config.enable_prefix_caching:
        swap_space = 0  # who is preempted begins again
    return MemoryRequest(
        shape=replace(shape, num_layers=len(place.stage.layers(shape.num_layers))),
        dtype=dtype,
        on_gpu=on_gpu,
        limit=limit if on_gpu else limit // layout.per_node,  # ranks have a GPU each, and share the cgroup
        resident=resident,
        weights=sum(p.numel() * p.element_size() for p in model.parameters()),
        utilization=config.gpu_memory_utilization,
        block_size=config.block_size,
        max_model_len=core_config.max_model_len,
        max_num_seqs=core_config.max_num_seqs,
        max_num_batched_tokens=core_config.max_num_batched_tokens,
        kv_cache_memory_bytes=config.kv_cache_memory_bytes,
        num_blocks=num_blocks,
        swap_space=swap_space,
        host_room=(memory_limit() - HTTP_SERVER_BYTES) // layout.per_node - resident_bytes(),
    )


def _runner(
    core_config: CoreConfig,
    model: LanguageModel,
    plan: MemoryPlan,
    dtype: torch.dtype,
    device: torch.device,
    place: Place,
) -> ModelRunner:
    cache = allocate_kv_cache(
        model,
        num_blocks=plan.num_blocks,
        block_size=plan.block_size,
        dtype=dtype,
        device=device,
        num_swap_blocks=plan.num_swap_blocks,
    )
    sampling = SamplingState(core_config.max_running, core_config.vocab_size, core_config.eos_token_ids, device)
    batch = InputBatch(
        max_num_seqs=core_config.max_running,
        max_num_batched_tokens=core_config.max_num_batched_tokens,
        max_blocks_per_seq=-(-core_config.max_model_len // core_config.block_size),
        block_size=core_config.block_size,
        sampling=sampling,
        device=device,
        rotates_by_length=core_config.rotation is not None,
        samples=place.rank == 0,
    )
    # The results are rank 0's.
    return ModelRunner(model, batch, cache, place, dtype, core_config.pooling if place.rank == 0 else None)
