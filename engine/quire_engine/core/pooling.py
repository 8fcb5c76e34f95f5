"""How an embedding model makes one vector of a prompt: plain values, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """What a model's vectors are made of."""

    over: Literal["last", "mean", "first"]  # whose hidden states: the last token's, all of them, or the first one's
    normalised: bool  # to a length of 1
    size: int  # of a whole vector
    # Sizes that vectors may be cut to (Kusupati et al., "Matryoshka representation learning"); none where empty.
    dimensions: tuple[int, ...] = ()

    def check_dimensions(self, wanted: int) -> None:
        """Raise `ValueError` when vectors cannot be cut to `wanted` elements."""
        if wanted in self.dimensions:
            return
        if not self.dimensions:
            raise ValueError(
                f"dimensions is {wanted}: this model's vectors have {self.size} and were not trained to be cut, "
                "leave it out"
            )
        if len(self.dimensions) == self.size:
            raise ValueError(f"dimensions is {wanted}: this model's vectors have {self.size}, ask for at most as many")
        known = ", ".join(map(str, self.dimensions))
        raise ValueError(f"dimensions is {wanted}: this model's vectors are made to be cut to one of {known}")


@dataclass(frozen=True)
class PoolingParams:
    """What one prompt's vector should be like."""

    dimensions: int | None = None  # its first elements alone, normalised anew where the model normalises; None for all
    normalize: bool | None = None  # None: as the model does
