"""TensorRT-LLM's `trtllm-serve`, on its PyTorch backend. Flags as of 1.3, which it needs.

What has no flag there is set by a YAML file, which a user mounts by podTemplate and names with `--config` in
spec.engine.args. Prometheus learns nothing either, unless such a file asks for it, hence no metrics.
"""

from __future__ import annotations

from quire_operator.api import LLMService
from quire_operator.builders.engines.engine import ENDPOINTS_LAG_SECONDS, FOREIGN_IMAGE, Engine, wait_for_proxies
from quire_operator.builders.paths import model_location

PORT = 8000


def trtllm(service: LLMService) -> Engine:
    """By its command: the image's entrypoint is NVIDIA's, which starts a shell."""
    return Engine(
        name="trtllm",
        command=("trtllm-serve",),
        args=(
            model_location(service),
            *_model(service),
            "--host=0.0.0.0",
            f"--port={PORT}",
            "--backend=pytorch",
            *_tuning(service),
            *service.spec.engine.args,
        ),
        variables=FOREIGN_IMAGE,
        port=PORT,
        metrics_path="/prometheus/metrics",
        pre_stop=wait_for_proxies(),
        pre_stop_seconds=ENDPOINTS_LAG_SECONDS,
    )


def _model(service: LLMService) -> list[str]:
    model = service.spec.model
    flags = [f"--served_model_name={service.served_name}"]
    if model.revision is not None:
        flags.append(f"--revision={model.revision}")
    if model.kv_cache_dtype != "auto":
        flags.append(f"--kv_cache_dtype={model.kv_cache_dtype}")
    if model.max_model_len is not None:
        flags.append(f"--max_seq_len={model.max_model_len}")
    if model.trust_remote_code:
        flags.append("--trust_remote_code")
    return flags


def _tuning(service: LLMService) -> list[str]:
    engine, parallelism = service.spec.engine, service.spec.parallelism
    flags = [
        f"--tp_size={parallelism.tensor}",
        f"--pp_size={parallelism.pipeline}",
        f"--max_batch_size={engine.max_num_seqs}",
        f"--kv_cache_free_gpu_memory_fraction={engine.gpu_memory_utilization:g}",
    ]
    if engine.max_num_batched_tokens is not None:
        flags.append(f"--max_num_tokens={engine.max_num_batched_tokens}")
    if engine.chunked_prefill:
        flags.append("--enable_chunked_prefill")
    return flags
