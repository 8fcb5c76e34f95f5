"""The engine's flags. They carry vLLM's names."""

from __future__ import annotations

from quire_operator.api import ClaimSource, HubSource, ImageSource, LLMService, parse_source

PORT = 8000
CLAIM_PATH = "/models/claim"
"""Where the claim of a pvc:// source is mounted."""


def engine_args(service: LLMService) -> list[str]:
    """Arguments of `quire-engine serve`. A tuning flag appears only where it differs from the engine's default."""
    return [
        *_model(service),
        *_serving(service),
        *_tuning(service),
        *_devices(service),
        *service.spec.engine.args,
    ]


def model_location(service: LLMService) -> str:
    """What the engine loads: a directory of the pod, or a name on the hub."""
    match parse_source(service.spec.model.source):
        case HubSource(repository=repository):
            return repository
        case ClaimSource(path=path):
            return f"{CLAIM_PATH}/{path}" if path else CLAIM_PATH
        case ImageSource(path=path):
            return path


def _model(service: LLMService) -> list[str]:
    model = service.spec.model
    args = [f"--model={model_location(service)}"]
    if model.revision is not None:
        args.append(f"--revision={model.revision}")
    args += ["--served-model-name", service.served_name, *model.aliases]
    if model.dtype != "auto":
        args.append(f"--dtype={model.dtype}")
    if model.max_model_len is not None:
        args.append(f"--max-model-len={model.max_model_len}")
    if model.trust_remote_code:
        args.append("--trust-remote-code")
    return args


def _serving(service: LLMService) -> list[str]:
    return ["--host=0.0.0.0", f"--port={PORT}", f"--shutdown-timeout={service.spec.rollout.drain_seconds}"]


def _tuning(service: LLMService) -> list[str]:
    engine = service.spec.engine
    args = []
    if engine.gpu_memory_utilization != 0.9:
        args.append(f"--gpu-memory-utilization={engine.gpu_memory_utilization:g}")
    if engine.max_num_seqs != 256:
        args.append(f"--max-num-seqs={engine.max_num_seqs}")
    if engine.max_num_batched_tokens is not None:
        args.append(f"--max-num-batched-tokens={engine.max_num_batched_tokens}")
    if engine.block_size != 16:
        args.append(f"--block-size={engine.block_size}")
    if engine.swap_space_gib != 4:
        args.append(f"--swap-space={engine.swap_space_gib:g}")
    if not engine.prefix_caching:
        args.append("--no-enable-prefix-caching")
    if not engine.chunked_prefill:
        args.append("--no-enable-chunked-prefill")
    if engine.enforce_eager:
        args.append("--enforce-eager")
    return args


def _devices(service: LLMService) -> list[str]:
    if service.spec.gpus_per_pod == 0:
        return ["--device=cpu"]
    tensor = service.spec.parallelism.tensor
    # By name, so that a pod whose GPU torch does not find says so, instead of serving on the CPU.
    return ["--device=cuda", *([f"--tensor-parallel-size={tensor}"] if tensor > 1 else [])]
