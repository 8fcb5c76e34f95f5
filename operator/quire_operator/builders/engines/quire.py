"""Quire's own engine: `quire-engine serve`."""

from __future__ import annotations

from dataclasses import replace

from quire_operator.api import LLMService
from quire_operator.builders.engines.engine import Engine
from quire_operator.builders.engines.group import group_flags
from quire_operator.builders.engines.vllm_flags import (
    METRICS,
    adapter_flags,
    model_flags,
    parallel_flags,
    serving_flags,
    tuning_flags,
)
from quire_operator.builders.paths import location, model_location

PORT = 8000

_TOKEN_BUCKETS = (
    *(0.001, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0),
)
"""vLLM's begin at 10 ms."""

_PRE_STOP_SECONDS = 30
"""What `quire-engine drain` may take until the endpoints have had time to change."""


def quire(service: LLMService) -> Engine:
    """As its image starts it."""
    args = (
        f"--model={model_location(service)}",
        *model_flags(service),
        *adapter_flags(_adapters(service)),
        *serving_flags(service, PORT),
        *tuning_flags(service),
        # By name, so that a pod whose GPU torch does not find says so, instead of serving on the CPU.
        "--device=cuda" if service.spec.gpus_per_pod else "--device=cpu",
        *parallel_flags(service),
        *group_flags(service),
        *service.spec.engine.args,
    )
    return Engine(
        name="quire",
        args=args,
        worker_args=args,
        api_key_variable="QUIRE_API_KEY",
        port=PORT,
        metrics=replace(METRICS, time_per_output_token_buckets=_TOKEN_BUCKETS),
        pre_stop={"exec": {"command": ["quire-engine", "drain"]}},
        pre_stop_seconds=_PRE_STOP_SECONDS,
    )


def _adapters(service: LLMService) -> list[dict[str, str]]:
    return [
        {
            "name": adapter.name,
            "path": location(service, adapter.source),
            **({"revision": adapter.revision} if adapter.revision is not None else {}),
        }
        for adapter in service.spec.model.adapters
    ]
