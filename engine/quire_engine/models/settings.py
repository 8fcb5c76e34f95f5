"""Reads single settings of a config.json, and says which one is wrong."""

from __future__ import annotations

from collections.abc import Mapping

from quire_engine.layers.activation import ACTIVATIONS
from quire_engine.memory_plan.config_fields import positive_int

Config = Mapping[str, object]


def number(config: Config, name: str, default: float) -> float:
    """Raises `ValueError` when the setting is no number."""
    value = config.get(name)
    value = default if value is None else value
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"config.json: {name} is {value!r}: it must be a number")
    return float(value)


def optional_number(config: Config, name: str, default: float | None) -> float | None:
    """As `number`, where null is a value of its own and means none."""
    return None if config.get(name, default) is None else number(config, name, default or 0.0)


def optional_window(config: Config) -> int | None:
    """`sliding_window`, where null and nothing mean none."""
    return None if config.get("sliding_window") is None else positive_int(config, "sliding_window")


def flag(config: Config, name: str, default: bool) -> bool:
    """Raises `ValueError` when the setting is neither true nor false."""
    value = config.get(name)
    value = default if value is None else value
    if not isinstance(value, bool):
        raise ValueError(f"config.json: {name} is {value!r}: it must be true or false")
    return value


def activation(config: Config, name: str, default: str) -> str:
    """The name of an activation. Raises `ValueError` when there is none of that name."""
    value = config.get(name) or default
    if not isinstance(value, str) or value not in ACTIVATIONS:
        raise ValueError(f"config.json: {name} is {value!r}: it must be one of {', '.join(ACTIVATIONS)}")
    return value


def refuse(config: Config, name: str, only: object) -> None:
    """Raises `ValueError` when a setting is another than the one that is built; it may be left out."""
    value = config.get(name, only)
    if value != only:
        raise ValueError(f"config.json: {name} is {value!r}: only {only!r} is supported")


def layer_kinds(config: Config, *, every: int | None = None) -> tuple[str, ...]:
    """`layer_types`; without it all but each `every`-th layer slide, or none where `every` is None.

    Raises `ValueError` for a list of another length or kinds that are not known.
    """
    num_layers = positive_int(config, "num_hidden_layers")
    kinds = config.get("layer_types")
    if kinds is None:
        return tuple(
            "sliding_attention" if every is not None and (i + 1) % every else "full_attention"
            for i in range(num_layers)
        )
    if not isinstance(kinds, list) or len(kinds) != num_layers:
        raise ValueError(f"config.json: layer_types is no list of {num_layers} kinds, one a layer")
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise ValueError(
                f"config.json: layer_types has {kind!r}: full_attention and sliding_attention are supported"
            )
    return tuple(kinds)
