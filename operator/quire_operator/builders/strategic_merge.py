"""Kubernetes' strategic merge, for a partial PodTemplateSpec laid over a whole one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

_MERGE_KEYS: dict[str, tuple[str, ...]] = {
    "containers": ("name",),
    "initContainers": ("name",),
    "ephemeralContainers": ("name",),
    "volumes": ("name",),
    "env": ("name",),
    "imagePullSecrets": ("name",),
    "resourceClaims": ("name",),
    "volumeMounts": ("mountPath",),
    "volumeDevices": ("devicePath",),
    "ports": ("containerPort", "protocol"),
    "hostAliases": ("ip",),
    "ownerReferences": ("uid",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
}
"""Lists that are merged element by element, and what tells their elements apart. Other lists are replaced."""

_DEFAULTS = {"protocol": "TCP"}


def merge(base: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `patch` laid over it; neither is changed.

    A null removes a field; `$patch: delete` removes an element and `$patch: replace` replaces the whole map.
    """
    if patch.get("$patch") == "replace":
        return copy.deepcopy({key: value for key, value in patch.items() if key != "$patch"})
    result = copy.deepcopy(dict(base))
    for field, value in patch.items():
        if value is None:
            result.pop(field, None)
        elif isinstance(value, Mapping):
            below = result.get(field)
            result[field] = merge(below if isinstance(below, Mapping) else {}, value)
        elif isinstance(value, list) and field in _MERGE_KEYS and _have_identity(field, value):
            result[field] = _merge_elements(field, result.get(field) or [], value)
        else:
            result[field] = copy.deepcopy(value)
    return result


def identity(field: str, element: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells `element` of the list `field` from the others; empty where the list is replaced as a whole."""
    return tuple(element.get(key, _DEFAULTS.get(key)) for key in _MERGE_KEYS.get(field, ()))


def _have_identity(field: str, elements: list[Any]) -> bool:
    return all(isinstance(element, Mapping) and None not in identity(field, element) for element in elements)


def _merge_elements(field: str, base: list[Any], patch: list[Any]) -> list[Any]:
    elements = {identity(field, element): element for element in base}
    for change in patch:
        key = identity(field, change)
        if change.get("$patch") == "delete":
            elements.pop(key, None)
        elif field == "volumes" and len(change) > 1:
            # a volume has one source: another one replaces it rather than standing beside it
            elements[key] = merge({}, change)
        else:
            elements[key] = merge(elements.get(key, {}), change)
    return list(elements.values())
