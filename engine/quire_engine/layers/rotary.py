"""Rotary position embeddings (Su et al., RoFormer, section 3.4) and the ways to stretch them over longer contexts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from quire_engine.memory_plan.context_length import stretched

ROPE_TYPES = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class RopeSettings:
    """The rope part of a config.json: `parameters` holds what a type needs beside `theta`."""

    rope_type: str
    theta: float
    parameters: Mapping[str, object]
    max_position_embeddings: int

    @staticmethod
    def from_config(config: Mapping[str, object], max_position_embeddings: int) -> RopeSettings:
        """Read `rope_parameters`, or the older `rope_theta` and `rope_scaling`. Raises `ValueError` when unknown."""
        parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if not isinstance(parameters, dict):
            raise ValueError(f"config.json: rope_parameters is {parameters!r}: it must be an object")
        rope_type = str(parameters.get("rope_type") or parameters.get("type") or "default")
        if rope_type not in ROPE_TYPES:
            raise ValueError(
                f"config.json: the rope type {rope_type!r} is not supported: use one of {', '.join(ROPE_TYPES)}"
            )
        partial = parameters.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
        if partial != 1.0:
            raise ValueError(f"config.json: partial_rotary_factor is {partial!r}: only 1.0 is supported")
        theta = parameters.get("rope_theta") or config.get("rope_theta") or 10000.0
        if not isinstance(theta, int | float):
            raise ValueError(f"config.json: rope_theta is {theta!r}: it must be a number")
        return RopeSettings(rope_type, float(theta), parameters, max_position_embeddings)

    def number(self, name: str, default: float | None = None) -> float:
        value = self.parameters.get(name)
        value = default if value is None else value
        if not isinstance(value, int | float):
            raise ValueError(f"config.json: the rope type {self.rope_type} needs {name} as a number, not {value!r}")
        return float(value)

    def longest(self) -> int:
        """Positions that the stretched embedding covers."""
        return stretched(self.rope_type, self.parameters, self.max_position_embeddings)


class RotaryEmbedding(nn.Module):
    """Rotates pairs (i, i + head_dim / 2) of each head by position x frequency_i."""

    inverse_frequencies: torch.Tensor  # [head_dim / 2] float32

    def __init__(self, head_dim: int, settings: RopeSettings) -> None:
        super().__init__()
        frequencies, self.attention_factor = rope_frequencies(head_dim, settings)
        self.register_buffer("inverse_frequencies", frequencies, persistent=False)

    def forward(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of `positions` [num_tokens], each [num_tokens, 1, head_dim / 2]: once a step."""
        angles = positions.float()[:, None, None] * self.inverse_frequencies
        return (angles.cos() * self.attention_factor).to(dtype), (angles.sin() * self.attention_factor).to(dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate `x` [num_tokens, num_heads, head_dim]."""
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)


def rope_frequencies(head_dim: int, settings: RopeSettings) -> tuple[torch.Tensor, float]:
    """The angle per position of each pair, [head_dim / 2] float32, and a factor on the attention's scale."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequencies = 1.0 / (settings.theta**exponents)
    match settings.rope_type:
        case "linear":
            return frequencies / settings.number("factor"), 1.0
        case "llama3":
            return _llama3(frequencies, settings), 1.0
        case "yarn":
            return _yarn(frequencies, head_dim, settings)
        case _:
            return frequencies, 1.0


def _llama3(frequencies: torch.Tensor, settings: RopeSettings) -> torch.Tensor:
    """Llama 3.1: long wavelengths are stretched, short ones kept, those between blended."""
    factor = settings.number("factor")
    low, high = settings.number("low_freq_factor"), settings.number("high_freq_factor")
    turns = settings.number("original_max_position_embeddings") * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - kept) * frequencies / factor + kept * frequencies


def _yarn(frequencies: torch.Tensor, head_dim: int, settings: RopeSettings) -> tuple[torch.Tensor, float]:
    """YaRN (Peng et al., 2023), sections 3.2 to 3.4."""
    factor = settings.number("factor")
    original = settings.number("original_max_position_embeddings", settings.max_position_embeddings)

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
