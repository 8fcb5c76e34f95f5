"""vLLM, as the image vllm/vllm-openai has it: its entrypoint is `vllm serve`. Flags as of 0.32; it needs 0.18."""

from __future__ import annotations

from quire_operator.api import LLMService
from quire_operator.builders.cached_model import adapter_directory
from quire_operator.builders.engines.engine import ENDPOINTS_LAG_SECONDS, FOREIGN_IMAGE, Engine, wait_for_proxies
from quire_operator.builders.engines.group import group_flags
from quire_operator.builders.engines.vllm_flags import (
    METRICS,
    adapter_flags,
    model_flags,
    parallel_flags,
    serving_flags,
    tuning_flags,
)
from quire_operator.builders.paths import HOME, location, model_location

PORT = 8000


def vllm(service: LLMService) -> Engine:
    """The model comes first and without a flag: `--model` is on its way out of `vllm serve`."""
    own, group = service.spec.engine.args, group_flags(service)
    flags = (
        model_location(service),
        *model_flags(service),
        *adapter_flags(_adapters(service)),
        *serving_flags(service, PORT),
        *tuning_flags(service),
        *(parallel_flags(service) if service.spec.gpus_per_pod else []),
        *(["--distributed-executor-backend=mp", *group] if group else []),
    )
    return Engine(
        name="vllm",
        args=(*flags, *own),
        worker_args=(*flags, "--headless", *own),
        variables={
            **FOREIGN_IMAGE,
            "VLLM_CACHE_ROOT": f"{HOME}/.cache/vllm",
            "VLLM_CONFIG_ROOT": f"{HOME}/.config/vllm",
        },
        api_key_variable="VLLM_API_KEY",
        port=PORT,
        metrics=METRICS,
        pre_stop=wait_for_proxies(),
        pre_stop_seconds=ENDPOINTS_LAG_SECONDS,
    )


def _adapters(service: LLMService) -> list[dict[str, str]]:
    """By their directory where that is known: it has no field for a revision."""
    return [
        {"name": adapter.name, "path": adapter_directory(service, adapter) or location(service, adapter.source)}
        for adapter in service.spec.model.adapters
    ]
