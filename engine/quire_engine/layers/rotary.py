"""Rotary position embeddings (Su et al., RoFormer, section 3.4) and the ways to stretch them over longer contexts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from quire_engine.attention.context import current_context
from quire_engine.core.rotation import RotationByLength
from quire_engine.kernels import cpu
from quire_engine.memory_plan.context_length import rope_parameters

LONGEST_TABLE = 1 << 15  # positions: 8 MiB for heads of 128 in bfloat16
ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


@dataclass(frozen=True)
class RopeSettings:
    """The rope part of a config.json: `parameters` holds what a type needs beside `theta`."""

    rope_type: str
    theta: float
    dim: int  # features of each head that are rotated: the first ones
    parameters: Mapping[str, object]
    max_position_embeddings: int
    interleaved: bool = False  # pairs are neighbours, not half of `dim` apart
    axes: tuple[int, ...] = ()  # pairs that time, height and width turn, where tokens have positions on each

    @staticmethod
    def from_config(
        config: Mapping[str, object],
        head_dim: int,
        max_position_embeddings: int,
        *,
        kind: str = "full_attention",
        interleaved: bool = False,
    ) -> RopeSettings:
        """Read what config.json says of the layers of `kind`. Raises `ValueError` for what is unknown or no number."""
        parameters = rope_parameters(config, kind)
        rope_type = parameters["rope_type"]
        if rope_type not in ROPE_TYPES:
            raise ValueError(
                f"config.json: the rope type {rope_type!r} is not supported: use one of {', '.join(ROPE_TYPES)}"
            )
        theta, partial = parameters.get("rope_theta") or 10000.0, parameters.get("partial_rotary_factor") or 1.0
        for name, value in (("rope_theta", theta), ("partial_rotary_factor", partial)):
            if not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise ValueError(f"config.json: {name} is {value!r}: it must be a number above 0")
        assert isinstance(theta, int | float)
        assert isinstance(partial, int | float)
        dim = int(head_dim * partial)
        if not 0 < dim <= head_dim or dim % 2:
            raise ValueError(
                f"config.json: partial_rotary_factor is {partial}: of {head_dim} features it rotates {dim}, "
                "and that must be an even number"
            )
        return RopeSettings(str(rope_type), float(theta), dim, parameters, max_position_embeddings, interleaved)

    @property
    def by_length(self) -> RotationByLength | None:
        """How sequences are rotated, where that depends on how long they are."""
        match self.rope_type:
            case "longrope":
                original = self.number("original_max_position_embeddings", self.max_position_embeddings)
                return RotationByLength("longrope", int(original))
            case "dynamic":
                return RotationByLength("dynamic", self.max_position_embeddings)
            case _:
                return None

    def number(self, name: str, default: float | None = None) -> float:
        value = self.parameters.get(name)
        value = default if value is None else value
        if not isinstance(value, int | float):
            raise ValueError(f"config.json: the rope type {self.rope_type} needs {name} as a number, not {value!r}")
        return float(value)

    def factors(self, name: str) -> torch.Tensor:
        """One number a pair, [dim / 2] float32."""
        values = self.parameters.get(name)
        if (
            not isinstance(values, list)
            or len(values) != self.dim // 2
            or not all(isinstance(v, int | float) for v in values)
        ):
            raise ValueError(f"config.json: the rope type {self.rope_type} needs {name} as {self.dim // 2} numbers")
        return torch.tensor(values, dtype=torch.float32)


class RotaryEmbedding(nn.Module):
    """The angles by which pairs of features are rotated: position x frequency_i."""

    inverse_frequencies: torch.Tensor  # [dim / 2] float32

    def __init__(self, settings: RopeSettings) -> None:
        super().__init__()
        frequencies, self.attention_factor = rope_frequencies(settings)
        self.register_buffer("inverse_frequencies", frequencies, persistent=False)
        self._table: tuple[torch.Tensor, torch.Tensor] | None = None

    def forward(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of `positions` [num_tokens], each [num_tokens, 1, dim / 2]: once a step."""
        angles = positions.float()[:, None, None] * self.frequencies()
        return (angles.cos() * self.attention_factor).to(dtype), (angles.sin() * self.attention_factor).to(dtype)

    def table(self, length: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor] | None:
        """`forward` of all positions before `length`, or of more: for later steps as well. None where there is none.

        That is where angles depend on more than positions, and past `LONGEST_TABLE` of them.
        """
        if type(self) is not RotaryEmbedding or length > LONGEST_TABLE:
            return None
        if self._table is None or len(self._table[0]) < length or self._table[0].dtype != dtype:
            rows = min(LONGEST_TABLE, max(1024, 1 << (length - 1).bit_length()))
            self._table = self(torch.arange(rows, device=self.inverse_frequencies.device), dtype)
        return self._table

    def frequencies(self) -> torch.Tensor:
        """[dim / 2] float32, or where they differ by token [num_tokens, 1, dim / 2]."""
        return self.inverse_frequencies


class LongRotaryEmbedding(RotaryEmbedding):
    """LongRoPE (Ding et al., 2024): other frequencies for sequences of more than the original length."""

    long_frequencies: torch.Tensor  # [dim / 2] float32

    def __init__(self, settings: RopeSettings) -> None:
        super().__init__(settings)
        self.original = int(settings.number("original_max_position_embeddings", settings.max_position_embeddings))
        long = frequencies_of(settings) / settings.factors("long_factor")
        self.register_buffer("long_frequencies", long, persistent=False)

    def frequencies(self) -> torch.Tensor:
        lengths = lengths_of_tokens()[:, None, None]
        return torch.where(lengths > self.original, self.long_frequencies, self.inverse_frequencies)


class DynamicRotaryEmbedding(RotaryEmbedding):
    """Dynamic NTK: from the original length on, the base grows with the length."""

    def __init__(self, settings: RopeSettings) -> None:
        super().__init__(settings)
        self.settings, self.factor = settings, settings.number("factor")

    def frequencies(self) -> torch.Tensor:
        lengths = lengths_of_tokens()[:, None, None]
        original, dim = self.settings.max_position_embeddings, self.settings.dim
        growth = self.factor * lengths.float() / original - (self.factor - 1)
        bases = self.settings.theta * growth.clamp_min(1.0) ** (dim / (dim - 2))
        exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=bases.device) / dim
        return torch.where(lengths > original, 1.0 / bases**exponents, self.inverse_frequencies)


class AxesRotaryEmbedding(RotaryEmbedding):
    """M-RoPE (Wang et al., 2024, Qwen2-VL, section 2.1): some pairs turn by time, some by height, others by width."""

    axis_of_pair: torch.Tensor  # [dim / 2] int64

    def __init__(self, settings: RopeSettings) -> None:
        super().__init__(settings)
        axes = [axis for axis, pairs in enumerate(settings.axes) for _ in range(pairs)]
        self.register_buffer("axis_of_pair", torch.tensor(axes), persistent=False)

    def forward(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        axes = current_context().axes
        if axes is None:  # the same on all
            return super().forward(positions, dtype)
        angles = axes[self.axis_of_pair].T.float()[:, None, :] * self.frequencies()
        return (angles.cos() * self.attention_factor).to(dtype), (angles.sin() * self.attention_factor).to(dtype)


def lengths_of_tokens() -> torch.Tensor:
    """What each token of the batch is rotated for, [num_tokens] int64."""
    lengths = current_context().lengths
    assert lengths is not None, "the batch has to be laid out with lengths"
    return lengths


def rotary_embedding(settings: RopeSettings) -> RotaryEmbedding:
    """The embedding of the type that `settings` name."""
    if settings.axes:
        return AxesRotaryEmbedding(settings)
    match settings.rope_type:
        case "longrope":
            return LongRotaryEmbedding(settings)
        case "dynamic":
            return DynamicRotaryEmbedding(settings)
        case _:
            return RotaryEmbedding(settings)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the pairs (i, i + head_dim / 2) of `x` [num_tokens, num_heads, head_dim]."""
    kernels = _kernels(x, cos, sin)
    if kernels is not None:
        return kernels.rotate(x, cos, sin)
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)


def _kernels(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> cpu.Library | None:
    each_token = x.dim() == 3 and cos.shape == sin.shape == (x.shape[0], 1, cos.shape[-1])
    return cpu.library_for(x, cos, sin) if each_token else None


def rotate_neighbours(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the pairs (2i, 2i + 1) of `x` [num_tokens, num_heads, head_dim]."""
    left, right = x[..., ::2], x[..., 1::2]
    return torch.stack((left * cos - right * sin, right * cos + left * sin), dim=-1).flatten(-2)


def rotate_first(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the first features of `x` [num_tokens, num_heads, head_dim], by halves: as many as have angles."""
    kernels = _kernels(x, cos, sin)
    if kernels is not None:
        return kernels.rotate(x, cos, sin)
    dim = 2 * cos.shape[-1]
    return torch.cat((rotate(x[..., :dim], cos, sin), x[..., dim:]), dim=-1)


def rotate_first_neighbours(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """As `rotate_first`, by neighbours."""
    dim = 2 * cos.shape[-1]
    return torch.cat((rotate_neighbours(x[..., :dim], cos, sin), x[..., dim:]), dim=-1)


def rope_frequencies(settings: RopeSettings) -> tuple[torch.Tensor, float]:
    """The angle per position of each pair, [dim / 2] float32, and a factor on the attention's scale."""
    frequencies = frequencies_of(settings)
    match settings.rope_type:
        case "linear":
            return frequencies / settings.number("factor"), 1.0
        case "llama3":
            return _llama3(frequencies, settings), 1.0
        case "yarn":
            return _yarn(frequencies, settings)
        case "longrope":
            return frequencies / settings.factors("short_factor"), _longrope_attention(settings)
        case _:
            return frequencies, 1.0


def frequencies_of(settings: RopeSettings) -> torch.Tensor:
    """The angle per position of each pair where nothing is stretched, [dim / 2] float32."""
    exponents = torch.arange(0, settings.dim, 2, dtype=torch.float32) / settings.dim
    return 1.0 / (settings.theta**exponents)


def _longrope_attention(settings: RopeSettings) -> float:
    """The factor on the attention's scale: as given, else by how far the context is stretched."""
    original = settings.number("original_max_position_embeddings", settings.max_position_embeddings)
    factor = settings.number("factor", settings.max_position_embeddings / original)
    default = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1.0 else 1.0
    return settings.number("attention_factor", default)


def _llama3(frequencies: torch.Tensor, settings: RopeSettings) -> torch.Tensor:
    """Llama 3.1: long wavelengths are stretched, short ones kept, those between blended."""
    factor = settings.number("factor")
    low, high = settings.number("low_freq_factor"), settings.number("high_freq_factor")
    turns = settings.number("original_max_position_embeddings") * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - kept) * frequencies / factor + kept * frequencies


def _yarn(frequencies: torch.Tensor, settings: RopeSettings) -> tuple[torch.Tensor, float]:
    """YaRN (Peng et al., 2023), sections 3.2 to 3.4."""
    head_dim = settings.dim
    original = settings.number("original_max_position_embeddings", settings.max_position_embeddings)
    factor = settings.number("factor", settings.max_position_embeddings / original)

    def dimension(turns: float) -> float:
        return head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(settings.theta))

    low, high = dimension(settings.number("beta_fast", 32)), dimension(settings.number("beta_slow", 1))
    if settings.parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = (torch.arange(head_dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)
    stretched = ramp.clamp(0.0, 1.0)

    def magnitude(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    attention = magnitude(1.0)
    if settings.parameters.get("mscale") and settings.parameters.get("mscale_all_dim"):
        attention = magnitude(settings.number("mscale")) / magnitude(settings.number("mscale_all_dim"))
    attention = settings.number("attention_factor", attention)
    return stretched * frequencies / factor + (1 - stretched) * frequencies, attention
