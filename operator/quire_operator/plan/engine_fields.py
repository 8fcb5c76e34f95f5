"""What engines other than Quire's have no flag for. A field that asks for it is refused, and never ignored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from quire_operator.api import Spec

_LEAVE = "leave it out"


@dataclass(frozen=True)
class Lack:
    """A field that an engine does nothing for."""

    field: str
    asks: Callable[[Spec], bool]
    """Whether the field asks for something that the engine does not have."""

    instead: str
    """What to write."""


_SWAP = Lack("spec.engine.swapSpaceGiB", lambda spec: spec.engine.swap_space_gib != 4, _LEAVE)
_BLOCKS = Lack("spec.engine.blockSize", lambda spec: spec.engine.block_size != 16, _LEAVE)
_PREFIXES = Lack("spec.engine.prefixCaching", lambda spec: not spec.engine.prefix_caching, "write true")
_CHUNKS = Lack("spec.engine.chunkedPrefill", lambda spec: not spec.engine.chunked_prefill, "write true")
_GRAPHS = Lack("spec.engine.enforceEager", lambda spec: spec.engine.enforce_eager, "write false")
_SPECULATION = Lack("spec.engine.speculative", lambda spec: spec.engine.speculative is not None, _LEAVE)
_ALIASES = Lack("spec.model.aliases", lambda spec: bool(spec.model.aliases), _LEAVE)
_ADAPTERS = Lack("spec.model.adapters", lambda spec: bool(spec.model.adapters), _LEAVE)
_NODES = Lack("spec.parallelism.nodes", lambda spec: spec.parallelism.nodes != 1, "write 1")
_QUANTIZATION = Lack("spec.model.quantization", lambda spec: spec.model.quantization != "auto", "write auto")
_DTYPE = Lack("spec.model.dtype", lambda spec: spec.model.dtype != "auto", "write auto")


def _needs_a_flag(field: str, asks: Callable[[Spec], bool]) -> Lack:
    return Lack(field, asks, "leave it out, and write the engine's own flag in spec.engine.args")


def _is_prefetched(spec: Spec) -> bool:
    """Whether the claim has what is of the hub before pods start."""
    cache = spec.cache
    has_claim = cache is not None and cache.prefetch and (cache.claim_name is not None or cache.volume is not None)
    return has_claim and not any(variable.get("name") == "HF_HUB_OFFLINE" for variable in spec.engine.env)


_INT8 = Lack(
    "spec.model.quantization", lambda spec: spec.model.quantization == "int8", "write auto, or a scheme that it has"
)

_VLLM = (
    _SWAP,
    _INT8,
    Lack(
        "spec.model.adapters[].revision",
        lambda spec: any(adapter.revision for adapter in spec.model.adapters) and not _is_prefetched(spec),
        "leave it out, or have adapters downloaded before pods start: spec.cache.claimName or volume",
    ),
)

_TGI = (
    _INT8,
    Lack(
        "spec.model.dtype",
        lambda spec: (
            spec.model.dtype == "float32" or (spec.model.dtype != "auto" and spec.model.quantization != "auto")
        ),
        "write auto, or without quantization bfloat16 or float16",
    ),
    Lack(
        "spec.model.adapters",
        lambda spec: any(
            set(",=@") & set(adapter.name)
            or (adapter.source.startswith("hf://") and adapter.source != f"hf://{adapter.name}")
            for adapter in spec.model.adapters
        ),
        "give an adapter from the hub its own name there, ORG/NAME, and none a name with , = or @",
    ),
    _BLOCKS,
    _SWAP,
    _CHUNKS,
    Lack(
        "spec.engine.speculative",
        lambda spec: spec.engine.speculative is not None and spec.engine.speculative.method != "ngram",
        "write method ngram",
    ),
    Lack("spec.parallelism.pipeline", lambda spec: spec.parallelism.pipeline != 1, "write 1, and raise tensor"),
    _NODES,
)

_TRTLLM = (
    _ALIASES,
    _DTYPE,
    _QUANTIZATION,
    _ADAPTERS,
    _BLOCKS,
    _SWAP,
    _PREFIXES,
    _GRAPHS,
    _SPECULATION,
    _NODES,
    Lack("spec.resources.gpu.count", lambda spec: spec.gpus_per_pod == 0, "write 1 or more"),
    Lack(
        "spec.security.apiKeySecretRef",
        lambda spec: spec.security.api_key_secret_ref is not None,
        "leave it out, and have a gateway ask for the key",
    ),
)

_CUSTOM = (
    _needs_a_flag("spec.model.aliases", _ALIASES.asks),
    _needs_a_flag("spec.model.dtype", _DTYPE.asks),
    _needs_a_flag("spec.model.quantization", _QUANTIZATION.asks),
    _needs_a_flag("spec.model.kvCacheDtype", lambda spec: spec.model.kv_cache_dtype != "auto"),
    _needs_a_flag("spec.model.maxModelLen", lambda spec: spec.model.max_model_len is not None),
    _needs_a_flag("spec.model.trustRemoteCode", lambda spec: spec.model.trust_remote_code),
    _needs_a_flag("spec.model.adapters", _ADAPTERS.asks),
    _needs_a_flag("spec.engine.gpuMemoryUtilization", lambda spec: spec.engine.gpu_memory_utilization != 0.9),
    _needs_a_flag("spec.engine.maxNumSeqs", lambda spec: spec.engine.max_num_seqs != 256),
    _needs_a_flag("spec.engine.maxNumBatchedTokens", lambda spec: spec.engine.max_num_batched_tokens is not None),
    _needs_a_flag("spec.engine.blockSize", _BLOCKS.asks),
    _needs_a_flag("spec.engine.swapSpaceGiB", _SWAP.asks),
    _needs_a_flag("spec.engine.prefixCaching", _PREFIXES.asks),
    _needs_a_flag("spec.engine.chunkedPrefill", _CHUNKS.asks),
    _needs_a_flag("spec.engine.enforceEager", _GRAPHS.asks),
    _needs_a_flag("spec.engine.speculative", _SPECULATION.asks),
)

LACKS: Mapping[str, tuple[Lack, ...]] = {
    "quire": (),
    "vllm": _VLLM,
    "tgi": _TGI,
    "trtllm": _TRTLLM,
    "custom": _CUSTOM,
}
"""By `spec.engine.type`. What Quire's own engine lacks is not built yet, which is told apart from this."""
