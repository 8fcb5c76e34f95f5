"""Which positions a model covers: what config.json says of its rotary embedding, and how far that is stretched."""

from __future__ import annotations

from collections.abc import Mapping

# What these types need may stand beside the rope parameters, as in Phi-3.
_OF_ORIGINAL = ("llama3", "yarn", "longrope")
# Here max_position_embeddings is what a linear rope stretches to, elsewhere what it stretches from.
_STRETCHED_ALREADY = ("Gemma3ForCausalLM", "Gemma3Model")


def longest_context(config: Mapping[str, object], max_position_embeddings: int) -> int:
    """Positions that the model of a config.json covers. Raises `ValueError` when its rope settings are wrong."""
    parameters = rope_parameters(config, "full_attention")
    chunks = config.get("dual_chunk_attention_config")
    if chunks:  # beyond these positions attention would be another (An et al., "Dual Chunk Attention")
        original = chunks.get("original_max_position_embeddings") if isinstance(chunks, dict) else None
        if not isinstance(original, int) or original < 1:
            raise ValueError("config.json: dual_chunk_attention_config has no original_max_position_embeddings")
        return min(original, max_position_embeddings)
    architectures = config.get("architectures")
    if isinstance(architectures, list) and any(name in _STRETCHED_ALREADY for name in architectures):
        return max_position_embeddings
    return stretched(str(parameters["rope_type"]), parameters, max_position_embeddings)


def rope_parameters(config: Mapping[str, object], kind: str) -> dict[str, object]:
    """`rope_parameters` of the layers of `kind`, or the older `rope_scaling` and `rope_theta`, as one mapping.

    It has a `rope_type`. Raises `ValueError` where it is none.
    """
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if isinstance(parameters, dict) and kind in parameters:
        parameters = parameters[kind] or {}
    if not isinstance(parameters, dict):
        raise ValueError(f"config.json: rope_parameters is {parameters!r}: it must be an object")
    rope_type = str(parameters.get("rope_type") or parameters.get("type") or "default")
    rope_type = "longrope" if rope_type == "su" else rope_type
    result = {**parameters, "rope_type": rope_type}
    for name in ("rope_theta", "partial_rotary_factor"):
        if result.get(name) is None and config.get(name) is not None:
            result[name] = config[name]
    original = config.get("original_max_position_embeddings")
    if original is not None and rope_type in _OF_ORIGINAL:
        result["original_max_position_embeddings"] = original
    return result


def stretched(rope_type: str, parameters: Mapping[str, object], max_position_embeddings: int) -> int:
    """Positions that a rope of `rope_type` covers."""
    if rope_type in ("linear", "dynamic"):
        return int(max_position_embeddings * _number(parameters, rope_type, "factor"))
    if rope_type == "yarn" and parameters.get("original_max_position_embeddings") and parameters.get("factor"):
        original = _number(parameters, rope_type, "original_max_position_embeddings")
        return int(original * _number(parameters, rope_type, "factor"))
    return max_position_embeddings


def _number(parameters: Mapping[str, object], rope_type: str, name: str) -> float:
    value = parameters.get(name)
    if not isinstance(value, int | float):
        raise ValueError(f"config.json: the rope type {rope_type} needs {name} as a number, not {value!r}")
    return float(value)
