"""Text Generation Inference, whose image starts `text-generation-launcher`. Flags as of 3.0."""

from __future__ import annotations

from collections.abc import Sequence

from quire_operator.api import LLMService
from quire_operator.builders.cached_model import adapter_directory
from quire_operator.builders.engines.engine import (
    ENDPOINTS_LAG_SECONDS,
    FOREIGN_IMAGE,
    Engine,
    Metrics,
    wait_for_proxies,
)
from quire_operator.builders.paths import hub_home, location, model_location

PORT = 8080
"""Its own default is 80, which takes root."""

MAX_BEST_OF = 20
"""OpenAI's bound of a request's `best_of`; TGI's own default is 2, and no field of the API is about it."""

METRICS = Metrics(
    waiting="tgi_queue_size",
    running="tgi_batch_current_size",
    time_per_output_token="tgi_request_mean_time_per_token_duration",
)


def tgi(service: LLMService) -> Engine:
    """Where TGI's defaults differ from the API's, the flag is written whatever the value."""
    flags = [
        f"--model-id={model_location(service)}",
        *_model(service),
        "--hostname=0.0.0.0",
        f"--port={PORT}",
        *_tuning(service),
        *_devices(service),
    ]
    own = service.spec.engine.args
    return Engine(
        name="tgi",
        args=(*_without(own, flags), *own),
        variables={**FOREIGN_IMAGE, "USAGE_STATS": "off", **_cache(service), **_prefix_caching(service)},
        api_key_variable="API_KEY",
        port=PORT,
        metrics=METRICS,
        pre_stop=wait_for_proxies(),
        pre_stop_seconds=ENDPOINTS_LAG_SECONDS,
    )


def _without(own: Sequence[str], flags: list[str]) -> list[str]:
    """The flags that `own` does not set: TGI refuses to start with one that is given twice."""
    names = {argument.partition("=")[0] for argument in own}
    return [flag for flag in flags if flag.partition("=")[0] not in names]


def _model(service: LLMService) -> list[str]:
    model = service.spec.model
    flags = [f"--revision={model.revision}"] if model.revision is not None else []
    if model.dtype != "auto":
        flags.append(f"--dtype={model.dtype}")
    if model.quantization != "auto":
        flags.append(f"--quantize={model.quantization}")
    if model.kv_cache_dtype == "fp8":
        flags.append("--kv-cache-dtype=fp8_e4m3fn")
    if model.max_model_len is not None:
        # a prompt must leave room for one token of the answer
        flags += [f"--max-input-tokens={model.max_model_len - 1}", f"--max-total-tokens={model.max_model_len}"]
    if model.trust_remote_code:
        flags.append("--trust-remote-code")
    if model.adapters:
        flags.append(f"--lora-adapters={','.join(_adapters(service))}")
    return flags


def _adapters(service: LLMService) -> list[str]:
    """`NAME=PATH` for what is in the pod; TGI downloads only what goes by its name on the hub, as NAME@REVISION."""
    found = []
    for adapter in service.spec.model.adapters:
        path = adapter_directory(service, adapter)
        if path is None and adapter.source.startswith("hf://"):
            found.append(f"{adapter.name}@{adapter.revision}" if adapter.revision is not None else adapter.name)
        else:
            found.append(f"{adapter.name}={path or location(service, adapter.source)}")
    return found


def _tuning(service: LLMService) -> list[str]:
    engine = service.spec.engine
    flags = [f"--max-concurrent-requests={engine.max_num_seqs}", f"--max-best-of={MAX_BEST_OF}"]
    if engine.max_num_batched_tokens is not None:
        flags.append(f"--max-batch-prefill-tokens={engine.max_num_batched_tokens}")
    if engine.enforce_eager:
        flags.append("--cuda-graphs=0")
    if engine.speculative is not None:
        flags.append(f"--speculate={engine.speculative.num_tokens}")
    return flags


def _devices(service: LLMService) -> list[str]:
    if service.spec.gpus_per_pod == 0:
        return ["--num-shard=1"]
    share = service.spec.engine.gpu_memory_utilization
    return [f"--num-shard={service.spec.parallelism.tensor}", f"--cuda-memory-fraction={share:g}"]


def _cache(service: LLMService) -> dict[str, str]:
    """The launcher, which is not Python, knows HF_HOME's place for models only by this name."""
    home = hub_home(service)
    return {"HUGGINGFACE_HUB_CACHE": f"{home}/hub"} if home is not None else {}


def _prefix_caching(service: LLMService) -> dict[str, str]:
    return {} if service.spec.engine.prefix_caching else {"PREFIX_CACHING": "0"}
