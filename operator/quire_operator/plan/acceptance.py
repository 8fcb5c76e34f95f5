"""Fields whose machinery is not there yet are refused, and never ignored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from quire_operator.api import Spec


@dataclass(frozen=True)
class Refusal:
    """Why an LLMService is not acted on."""

    reason: str
    message: str


_LATER: tuple[tuple[str, Callable[[Spec], bool], str], ...] = (
    ("spec.model.quantization", lambda spec: spec.model.quantization != "auto", "write auto"),
    ("spec.model.kvCacheDtype", lambda spec: spec.model.kv_cache_dtype != "auto", "write auto"),
    ("spec.model.adapters", lambda spec: bool(spec.model.adapters), "leave it out"),
    ("spec.engine.type", lambda spec: spec.engine.type != "quire", "write quire"),
    ("spec.engine.speculative", lambda spec: spec.engine.speculative is not None, "leave it out"),
    ("spec.engine.swapSpaceGiB", lambda spec: spec.engine.swap_space_gib != 4, "leave it out"),
    ("spec.parallelism.tensor", lambda spec: spec.parallelism.tensor != 1, "write 1"),
    ("spec.parallelism.pipeline", lambda spec: spec.parallelism.pipeline != 1, "write 1"),
    ("spec.parallelism.nodes", lambda spec: spec.parallelism.nodes != 1, "write 1"),
    ("spec.autoscaling", lambda spec: spec.autoscaling is not None, "write a number of replicas"),
    ("spec.cache.local", lambda spec: spec.cache is not None and spec.cache.local is not None, "leave it out"),
)
"""Field, whether it asks for something that is not there yet, and what to write instead."""


def refusal_of(spec: Spec) -> Refusal | None:
    """Why `spec` cannot be acted on, naming every field in the way; None when it can."""
    unsupported = [f"{field} ({instead})" for field, asks, instead in _LATER if asks(spec)]
    if not unsupported:
        return None
    return Refusal("NotSupportedYet", f"this version does not support {', '.join(unsupported)}")
