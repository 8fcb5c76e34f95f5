"""Quire's own engine: `quire-engine serve`."""

from __future__ import annotations

from quire_operator.api import LLMService
from quire_operator.builders.engines.engine import Engine
from quire_operator.builders.engines.vllm_flags import (
    METRICS,
    model_flags,
    parallel_flags,
    serving_flags,
    tuning_flags,
)
from quire_operator.builders.paths import model_location

PORT = 8000

_PRE_STOP_SECONDS = 30
"""What `quire-engine drain` may take until the endpoints have had time to change."""


def quire(service: LLMService) -> Engine:
    """As its image starts it."""
    return Engine(
        name="quire",
        args=(
            f"--model={model_location(service)}",
            *model_flags(service),
            *serving_flags(service, PORT),
            *tuning_flags(service),
            # By name, so that a pod whose GPU torch does not find says so, instead of serving on the CPU.
            "--device=cuda" if service.spec.gpus_per_pod else "--device=cpu",
            *parallel_flags(service),
            *service.spec.engine.args,
        ),
        api_key_variable="QUIRE_API_KEY",
        port=PORT,
        metrics=METRICS,
        pre_stop={"exec": {"command": ["quire-engine", "drain"]}},
        pre_stop_seconds=_PRE_STOP_SECONDS,
    )
