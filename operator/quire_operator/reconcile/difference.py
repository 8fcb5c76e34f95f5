"""Whether a live object still says what we applied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quire_operator.api.quantity import parse_quantity
from quire_operator.builders.strategic_merge import identity

_QUANTITIES = ("requests", "limits")
_QUANTITY_FIELDS = ("sizeLimit", "storage", "divisor")


def first_difference(desired: Mapping[str, Any], live: Mapping[str, Any]) -> str | None:
    """Path of the first field of `desired` that `live` has otherwise; None when all are as desired.

    Fields and list elements that only `live` has are somebody else's or the API server's defaults. A zero value that
    `live` lacks is the same: the API server leaves those out. Quantities are compared as numbers.
    """
    return _map_difference(desired, live, "")


def _map_difference(desired: Mapping[str, Any], live: Mapping[str, Any], path: str) -> str | None:
    for field, wanted in desired.items():
        found = _difference(wanted, live.get(field), f"{path}.{field}" if path else field)
        if found is not None:
            return found
    return None


def _difference(desired: Any, live: Any, path: str) -> str | None:
    if live is None:
        return path if _means_something(desired) else None
    if isinstance(desired, Mapping) and isinstance(live, Mapping):
        return _map_difference(desired, live, path)
    if isinstance(desired, list) and isinstance(live, list):
        return _list_difference(desired, live, path)
    return None if desired == live or _same_quantity(desired, live, path) else path


def _list_difference(desired: Sequence[Any], live: Sequence[Any], path: str) -> str | None:
    field = path.rsplit(".", 1)[-1]
    keys = [identity(field, element) if isinstance(element, Mapping) else () for element in [*desired, *live]]
    if desired and all(key and None not in key for key in keys):
        by_key = dict(zip(keys[len(desired) :], live, strict=True))
        pairs = [(element, by_key.get(key)) for key, element in zip(keys, desired, strict=False)]
    elif len(desired) != len(live):
        return path
    else:
        pairs = list(zip(desired, live, strict=True))
    for index, (wanted, found) in enumerate(pairs):
        difference = _difference(wanted, found, f"{path}.{index}") if found is not None else f"{path}.{index}"
        if difference is not None:
            return difference
    return None


def _means_something(desired: Any) -> bool:
    if isinstance(desired, Mapping):
        return any(_means_something(value) for value in desired.values())
    return bool(desired)


def _same_quantity(desired: Any, live: Any, path: str) -> bool:
    # a resource's name has dots of its own, as in limits.nvidia.com/gpu
    below_quantities = any(f".{parent}." in f".{path}" for parent in _QUANTITIES)
    if not below_quantities and path.rsplit(".", 1)[-1] not in _QUANTITY_FIELDS:
        return False
    try:
        return parse_quantity(desired) == parse_quantity(live)
    except ValueError:
        return False
