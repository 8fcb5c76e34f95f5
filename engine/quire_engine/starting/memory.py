"""What a rank's memory is used for, and what its steps run in."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from quire_engine.config import EngineConfig
from quire_engine.core.core_config import CoreConfig
from quire_engine.core.merged_patches import MergedCount
from quire_engine.distributed.place import Place
from quire_engine.execution.device import device_memory
from quire_engine.execution.image_embedder import ImageEmbedder
from quire_engine.execution.input_batch import InputBatch
from quire_engine.execution.kv_cache import allocate_kv_cache
from quire_engine.execution.model_runner import ModelRunner
from quire_engine.execution.padded_decodes import Capture, PaddedDecodes, can_be_padded
from quire_engine.execution.sampling_state import SamplingState
from quire_engine.lora.adapted_model import AdaptedModel
from quire_engine.memory_plan.host_memory import memory_limit, resident_bytes
from quire_engine.memory_plan.plan import GIB, HTTP_SERVER_BYTES, MemoryPlan, MemoryRequest, image_room
from quire_engine.models.language_model import LanguageModel
from quire_engine.models.prepared_images import on_device


def memory_request(
    config: EngineConfig,
    core_config: CoreConfig,
    model: LanguageModel,
    dtype: str,
    device: torch.device,
    resident: int,
    place: Place,
    adapted: AdaptedModel | None = None,
    adapter_file: int = 0,
) -> MemoryRequest:
    """What the memory plan of this rank, with its `model` loaded, depends on.

    `adapter_file` are the bytes of an adapter's file that is being loaded, of which each message to a rank is a copy.
    """
    layout, shape = place.layout, model.shape.shard(place.layout.tensor)
    on_gpu = device.type == "cuda"
    limit = device_memory(device).limit
    num_blocks = config.num_gpu_blocks_override
    swap_space = None if config.swap_space is None else int(config.swap_space * GIB)
    if not model.batches:  # one request, which has its room and is never preempted
        num_blocks, swap_space = -(-core_config.max_model_len // config.block_size), 0
    if core_config.pooling is not None and not core_config.enable_prefix_caching:
        swap_space = 0  # who is preempted begins again
    adapters = 0
    if adapted is not None:
        adapter_file *= 1 if layout.size == 1 else layout.size + 1
        adapters = adapted.num_bytes(
            config.max_lora_rank, core_config.adapter_room, core_config.max_num_batched_tokens
        ) + (0 if on_gpu else adapter_file)
    return MemoryRequest(
        shape=replace(
            place.stage.shape(shape, len(place.stage.layers(shape.num_layers))),
            writes_scores=any(not layer.fused for layer in model.attention_layers()),
        ),
        dtype=dtype,
        on_gpu=on_gpu,
        limit=limit if on_gpu else limit // layout.per_node,  # ranks have a GPU each, and share the cgroup
        resident=resident,
        weights=held_by_weights(model),
        utilization=config.gpu_memory_utilization,
        block_size=config.block_size,
        max_model_len=core_config.max_model_len,
        max_num_seqs=core_config.max_num_seqs,
        max_num_batched_tokens=core_config.max_num_batched_tokens,
        kv_cache_memory_bytes=config.kv_cache_memory_bytes,
        num_blocks=num_blocks,
        swap_space=swap_space,
        host_room=(memory_limit() - HTTP_SERVER_BYTES) // layout.per_node
        - resident_bytes()
        - (adapter_file if on_gpu else 0),
        image_room=image_room(model.shape, dtype) if core_config.images is not None and place.rank == 0 else 0,
        adapters=adapters,
    )


def held_by_weights(model: nn.Module) -> int:
    """Bytes of memory, with what lies between rows that are apart."""
    storages = (parameter.untyped_storage() for parameter in model.parameters())
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def window_of_all_layers(model: LanguageModel) -> int | None:
    """The latest positions that a token sees, where every layer has a window."""
    windows = [layer.window for layer in model.attention_layers()]
    return max((w for w in windows if w is not None), default=None) if None not in windows else None


def model_runner(
    core_config: CoreConfig,
    model: LanguageModel,
    plan: MemoryPlan,
    dtype: torch.dtype,
    device: torch.device,
    place: Place,
    adapted: AdaptedModel | None = None,
    capture: Capture | None = None,
) -> ModelRunner:
    """Allocate the KV cache and the buffers of steps, as `plan` says.

    With `capture` there is a page more, which padding writes to, and decodes can be recorded where the model lets them.
    """
    if place.layout.pipeline > 1:  # stages hand on as many rows as there are
        capture = None
    cache = allocate_kv_cache(
        model,
        num_blocks=plan.num_blocks + (capture is not None),
        block_size=plan.block_size,
        dtype=dtype,
        device=device,
        num_swap_blocks=plan.num_swap_blocks,
    )
    sampling = None
    if place.rank == 0:
        sampling = SamplingState(
            core_config.max_running,
            core_config.vocab_size,
            core_config.eos_token_ids,
            device,
            core_config.max_model_len,
        )
    count = None if core_config.images is None else core_config.images.count
    batch = InputBatch(
        max_num_seqs=core_config.max_running,
        max_num_batched_tokens=core_config.max_num_batched_tokens,
        max_blocks_per_seq=-(-core_config.max_model_len // core_config.block_size),
        block_size=core_config.block_size,
        sampling=sampling,
        device=device,
        rotates_by_length=core_config.rotation is not None,
        adapts_images=core_config.images is not None and core_config.images.adapted,
        grids=count if isinstance(count, MergedCount) else None,
        adapters=adapted is not None,
        feeds_back=core_config.runs_ahead,
    )
    padded = None
    if capture is not None and can_be_padded(model):
        padded = PaddedDecodes(
            model,
            max_num_seqs=core_config.max_running,
            max_blocks_per_seq=-(-core_config.max_model_len // core_config.block_size),
            spare_slot=plan.num_blocks * plan.block_size,
            rotates_by_length=core_config.rotation is not None,
            dtype=dtype,
            device=device,
            capture=capture,
        )
    images = None
    if core_config.images is not None and place.stage.first:  # where tokens are embedded
        images = ImageEmbedder(lambda prepared: model.embed_image(on_device(prepared, device)))
    # The results are rank 0's.
    pooling = core_config.pooling if place.rank == 0 else None
    depth = 2 if core_config.runs_ahead else 1
    return ModelRunner(model, batch, cache, place, dtype, pooling, images, adapted, padded, depth)
