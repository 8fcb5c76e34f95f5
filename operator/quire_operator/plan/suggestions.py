"""What to write instead, so that the model fits; each was tried by the same sum."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal

from quire_engine.memory_plan.quantization import ROUNDED
from quire_operator.plan.acceptance import refusal_of
from quire_operator.plan.fit import MOST_GPUS, ROUNDED_BITS, Trial, longest_that_fits, smallest_tensor

_ON_GPU = {"fp8": ROUNDED_BITS, "awq": 4.25}
_ON_CPU = {"int8": ROUNDED_BITS, "awq": 4.25}
"""Scheme of `spec.model.quantization` that is worth a try, and the bits of a weight with its scales."""

_UTILIZATION = 0.95
_SHORT = 4096
"""Tokens of a request that is short enough to be worth a look."""

_GPUS_OF_A_NODE = 8
"""That few nodes have more of, where their labels do not say."""

_GIB = 1 << 30


def suggestions(trial: Trial) -> list[str]:
    """Ways out, the one that keeps the most first; none for what fits."""
    return [] if trial.fits() else list(_ways_out(trial))


def _ways_out(trial: Trial) -> Iterator[str]:
    if trial.utilization < _UTILIZATION and replace(trial, utilization=_UTILIZATION).fits():
        yield f"set spec.engine.gpuMemoryUtilization to {_UTILIZATION}"
    tensor = smallest_tensor(trial)
    spread = _with_a_stage_on_each(trial) if tensor is None else None
    if tensor is not None:
        yield _with_tensor(trial, tensor)
    if spread is not None:
        yield _with_nodes(spread)
    if not trial.device.on_gpu:
        memory = _memory_that_fits(trial)
        if memory is not None:
            yield f"set spec.resources.memory to {memory}Gi"
    for scheme in quantizations(trial):
        yield _with_quantization(scheme)
    longest = longest_that_fits(trial)
    if longest:
        yield f"set spec.model.maxModelLen to at most {longest}"
    elif tensor is None and spread is None:
        yield from _both(trial)


def _both(trial: Trial) -> Iterator[str]:
    """More GPUs and shorter requests, where neither helps by itself."""
    short = replace(trial, max_model_len=min(trial.max_model_len, _SHORT))
    tensor = smallest_tensor(short)
    if tensor is not None:
        more = _over_nodes(short, tensor) or replace(short, tensor=tensor)
        longest = longest_that_fits(replace(more, max_model_len=trial.max_model_len))
        yield f"{_with_tensor(short, tensor)}, with spec.model.maxModelLen at most {longest}"


def _with_tensor(trial: Trial, tensor: int) -> str:
    """How the model has `tensor` GPUs in each stage; or as many over several nodes, where no node has so many."""
    spread, most = _over_nodes(trial, tensor), _most_of_a_node(trial)
    if spread is None:
        return f"set spec.parallelism.tensor to {tensor}, and spec.resources.gpu.count with it where it is set"
    which = "no node has" if trial.device.a_node else "few nodes have"
    return f"{_with_nodes(spread)}, as {which} more than {most} GPUs"


def _with_nodes(spread: Trial) -> str:
    nodes = _nodes(spread)
    each = spread.tensor * spread.pipeline // nodes
    return (
        f"set spec.parallelism.tensor to {spread.tensor}, spec.parallelism.pipeline to {spread.pipeline} and "
        f"spec.parallelism.nodes to {nodes}, with {each} GPUs on each"
    )


def _over_nodes(trial: Trial, tensor: int) -> Trial | None:
    """The model on several nodes, so that it fits; None where as many as now have so many GPUs in each stage."""
    ranks, nodes = tensor * trial.pipeline, trial.spec.parallelism.nodes
    if ranks % nodes == 0 and ranks // nodes <= _most_of_a_node(trial):
        return None
    # Stages have less to tell each other than the GPUs that share a layer.
    return _with_a_stage_on_each(trial) or replace(trial, tensor=tensor)


def _with_a_stage_on_each(trial: Trial) -> Trial | None:
    """The model on the fewest nodes, so that it fits; None where it does on no number of them."""
    shape, most = trial.facts.shape, _most_of_a_node(trial)
    if not trial.device.on_gpu or trial.facts.stages is None:
        return None
    tensor = max(size for size in range(1, most + 1) if shape.can_split(size))
    counts = range(max(2, trial.pipeline), min(shape.num_layers, MOST_GPUS // tensor) + 1)
    return next(filter(Trial.fits, (replace(trial, tensor=tensor, pipeline=count) for count in counts)), None)


def _nodes(trial: Trial) -> int:
    """The fewest nodes that have the trial's GPUs, as many each."""
    ranks, most = trial.tensor * trial.pipeline, _most_of_a_node(trial)
    return next(count for count in range(1, ranks + 1) if ranks % count == 0 and ranks // count <= most)


def _most_of_a_node(trial: Trial) -> int:
    return trial.device.a_node or _GPUS_OF_A_NODE


def _with_quantization(scheme: str) -> str:
    if scheme in ROUNDED:
        return f"set spec.model.quantization to {scheme}, which rounds the weights to 8 bits while they load"
    return f"take a checkpoint quantized to 4 bits ({scheme})"


def quantizations(trial: Trial) -> list[str]:
    """Schemes that this version serves and that would make the model fit."""
    return [scheme for scheme, bits in _served(trial).items() if replace(trial, bits=bits).fits()]


def on_fewer_gpus(trial: Trial) -> tuple[str, int] | None:
    """The scheme that would have the model take fewer GPUs, and how many; None where none would."""
    most = trial.tensor - 1 if trial.fits() else trial.tensor
    for scheme, bits in _served(trial).items() if trial.device.on_gpu and most else []:
        tensor = smallest_tensor(replace(trial, bits=bits))
        if tensor is not None and tensor <= most:
            return scheme, tensor
    return None


def _served(trial: Trial) -> dict[str, float]:
    """Schemes that the model could be quantized to, for the engine of this spec, with the bits of a weight."""
    if trial.facts.quantization is not None or trial.bits is not None:
        return {}
    return {
        scheme: bits for scheme, bits in (_ON_GPU if trial.device.on_gpu else _ON_CPU).items() if _has(trial, scheme)
    }


def _has(trial: Trial, scheme: str) -> bool:
    model = trial.spec.model.model_copy(update={"quantization": scheme})
    return refusal_of(trial.spec.model_copy(update={"model": model})) is None


def _memory_that_fits(trial: Trial) -> int | None:
    """GiB of the pod, rounded up; None when more memory does not help, since the cache on CPU is bounded."""
    memory = trial.memory()
    used = memory.others + memory.weights + memory.activations
    page = trial.spec.engine.block_size
    needed = used + -(-trial.max_model_len // page) * page * trial.kv_bytes_per_token
    gibibytes = -(-int(needed / Decimal(str(trial.utilization))) // _GIB)
    return gibibytes if replace(trial, device=replace(trial.device, memory=gibibytes * _GIB)).fits() else None
