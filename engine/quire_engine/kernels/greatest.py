"""The greatest logit of each row, by the library of kernels for CPUs where that has it."""

from __future__ import annotations

import torch

from quire_engine.core.step import NO_TOKEN
from quire_engine.kernels import cpu
from quire_engine.sampling import greatest as plain


def greatest(logits: torch.Tensor) -> torch.Tensor:
    """As `sampling.greatest.greatest`."""
    library = cpu.library_for(logits) if logits.dtype == torch.bfloat16 else None
    return plain.greatest(logits) if library is None else library.greatest(logits, NO_TOKEN)
