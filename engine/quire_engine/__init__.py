"""Quire's inference engine. Imports nothing heavy until a name is used: the operator shares `memory_plan`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Read when torch loads its thread pool. By default threads spin while they wait for each other, and on a machine
# whose cores are shared each spins away the time in which the other could have run: steps took 8 times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from quire_engine.core.pooling import PoolingParams
    from quire_engine.llm import LLM
    from quire_engine.lora.request import LoRARequest
    from quire_engine.sampling_params import BeamSearchParams, SamplingParams
    from quire_engine.structured_outputs import StructuredOutputsParams

__all__ = [
    "LLM",
    "BeamSearchParams",
    "LoRARequest",
    "PoolingParams",
    "SamplingParams",
    "StructuredOutputsParams",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name == "LLM":
        from quire_engine.llm import LLM

        return LLM
    if name == "LoRARequest":
        from quire_engine.lora.request import LoRARequest

        return LoRARequest
    if name == "SamplingParams":
        from quire_engine.sampling_params import SamplingParams

        return SamplingParams
    if name == "PoolingParams":
        from quire_engine.core.pooling import PoolingParams

        return PoolingParams
    if name == "BeamSearchParams":
        from quire_engine.sampling_params import BeamSearchParams

        return BeamSearchParams
    if name == "StructuredOutputsParams":
        from quire_engine.structured_outputs import StructuredOutputsParams

        return StructuredOutputsParams
    raise AttributeError(f"module 'quire_engine' has no attribute {name!r}")
