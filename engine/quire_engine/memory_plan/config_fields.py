"""Fields of a config.json."""

from __future__ import annotations

from collections.abc import Mapping

Config = Mapping[str, object]

# No model comes near: what is above is a mistake, and would be counted up to before anything else is found.
_MOST = {"num_hidden_layers": 10_000, "num_experts": 10_000}
_MOST_OF_ALL = (1 << 31) - 1


def positive_int(config: Config, name: str, *, default: int | None = None) -> int:
    """A size. Raises `ValueError` that names the field when it is missing or none."""
    value = config.get(name)
    if value is None:
        value = default
    if value is None:
        raise ValueError(f"config.json has no {name!r}")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"config.json: {name} is {value!r}: it must be a whole number above 0")
    most = _MOST.get(name, _MOST_OF_ALL)
    if value > most:
        raise ValueError(f"config.json: {name} is {value}: it must be at most {most}")
    return value
