"""How many positions a rotary embedding covers once it is stretched."""

from __future__ import annotations

from collections.abc import Mapping


def longest_context(config: Mapping[str, object], max_position_embeddings: int) -> int:
    """Positions that the model of a config.json covers. Raises `ValueError` when its rope settings are no numbers."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(parameters, dict):
        raise ValueError(f"config.json: rope_parameters is {parameters!r}: it must be an object")
    rope_type = parameters.get("rope_type") or parameters.get("type") or "default"
    return stretched(str(rope_type), parameters, max_position_embeddings)


def stretched(rope_type: str, parameters: Mapping[str, object], max_position_embeddings: int) -> int:
    """Positions that a rope of `rope_type` covers."""
    if rope_type == "linear":
        return int(max_position_embeddings * _number(parameters, rope_type, "factor"))
    if rope_type == "yarn" and parameters.get("original_max_position_embeddings"):
        original = _number(parameters, rope_type, "original_max_position_embeddings")
        return int(original * _number(parameters, rope_type, "factor"))
    return max_position_embeddings


def _number(parameters: Mapping[str, object], rope_type: str, name: str) -> float:
    value = parameters.get(name)
    if not isinstance(value, int | float):
        raise ValueError(f"config.json: the rope type {rope_type} needs {name} as a number, not {value!r}")
    return float(value)
