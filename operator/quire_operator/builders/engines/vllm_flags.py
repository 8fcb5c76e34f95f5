"""Flags under vLLM's names, which are Quire's too. A tuning flag appears only where it differs from their default."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from quire_operator.api import LLMService
from quire_operator.api.engine import Speculative
from quire_operator.builders.engines.engine import Metrics
from quire_operator.builders.paths import location

METRICS = Metrics(
    waiting="vllm:num_requests_waiting",
    running="vllm:num_requests_running",
    time_to_first_token="vllm:time_to_first_token_seconds",
    time_per_output_token="vllm:request_time_per_output_token_seconds",
    kv_cache_usage="vllm:kv_cache_usage_perc",
    generated_tokens="vllm:generation_tokens_total",
    steps="vllm:iteration_tokens_total_count",
    preemptions="vllm:num_preemptions_total",
    time_to_first_token_buckets=(
        *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
        *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0),
    ),
    time_per_output_token_buckets=(
        *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
        *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
    ),
)


def model_flags(service: LLMService) -> list[str]:
    """What is served, under which names, in which type."""
    model = service.spec.model
    flags = [f"--revision={model.revision}"] if model.revision is not None else []
    flags += ["--served-model-name", service.served_name, *model.aliases]
    if model.dtype != "auto":
        flags.append(f"--dtype={model.dtype}")
    if model.quantization != "auto":
        flags.append(f"--quantization={model.quantization}")
    if model.kv_cache_dtype != "auto":
        flags.append(f"--kv-cache-dtype={model.kv_cache_dtype}")
    if model.max_model_len is not None:
        flags.append(f"--max-model-len={model.max_model_len}")
    if model.trust_remote_code:
        flags.append("--trust-remote-code")
    return flags


def adapter_flags(modules: Sequence[Mapping[str, str]]) -> list[str]:
    """Adapters, as JSON, since the short form NAME=PATH cannot have every name."""
    return ["--enable-lora", "--lora-modules", *(json.dumps(module) for module in modules)] if modules else []


def serving_flags(service: LLMService, port: int) -> list[str]:
    """Where it listens, and how long running requests get after SIGTERM."""
    return ["--host=0.0.0.0", f"--port={port}", f"--shutdown-timeout={service.spec.rollout.drain_seconds}"]


def tuning_flags(service: LLMService) -> list[str]:
    """Memory and scheduling."""
    engine = service.spec.engine
    flags = []
    if engine.gpu_memory_utilization != 0.9:
        flags.append(f"--gpu-memory-utilization={engine.gpu_memory_utilization:g}")
    if engine.max_num_seqs != 256:
        flags.append(f"--max-num-seqs={engine.max_num_seqs}")
    if engine.max_num_batched_tokens is not None:
        flags.append(f"--max-num-batched-tokens={engine.max_num_batched_tokens}")
    if engine.block_size != 16:
        flags.append(f"--block-size={engine.block_size}")
    if engine.swap_space_gib != 4:
        flags.append(f"--swap-space={engine.swap_space_gib:g}")
    if not engine.prefix_caching:
        flags.append("--no-enable-prefix-caching")
    if not engine.chunked_prefill:
        flags.append("--no-enable-chunked-prefill")
    if engine.enforce_eager:
        flags.append("--enforce-eager")
    if engine.speculative is not None:
        flags.append(f"--speculative-config={json.dumps(_speculative(service, engine.speculative))}")
    return flags


def _speculative(service: LLMService, wish: Speculative) -> dict[str, str | int]:
    config: dict[str, str | int] = {"num_speculative_tokens": wish.num_tokens}
    if wish.model is None:
        return {"method": "ngram", **config}
    return {"method": "draft_model", "model": location(service, wish.model), **config}


def parallel_flags(service: LLMService) -> list[str]:
    """How the model is spread over ranks."""
    parallelism = service.spec.parallelism
    flags = []
    if parallelism.tensor > 1:
        flags.append(f"--tensor-parallel-size={parallelism.tensor}")
    if parallelism.pipeline > 1:
        flags.append(f"--pipeline-parallel-size={parallelism.pipeline}")
    return flags
