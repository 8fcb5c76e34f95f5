"""The shape of spec.podTemplate. The CRD keeps it whole and unread, so what is malformed is found here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator

from quire_operator.api.names import Opaque

_LISTS = ("containers", "initContainers", "volumes", "imagePullSecrets", "tolerations", "topologySpreadConstraints")
_LISTS_OF_CONTAINER = ("env", "envFrom", "ports", "volumeMounts", "volumeDevices")


def checked_pod_template(template: dict[str, Any]) -> dict[str, Any]:
    """`template` as it is. Raises ValueError that names the field which is no object, list or map of strings."""
    metadata, spec = _object(template, "", "metadata"), _object(template, "", "spec")
    for field in ("labels", "annotations"):
        for key, value in _object(metadata, "metadata.", field).items():
            if value is not None and not isinstance(value, str):
                raise ValueError(f"metadata.{field}.{key} is {value!r}: write a string, in quotes")
    for field in _LISTS:
        for number, element in enumerate(_objects(spec, "spec.", field)):
            if field in ("containers", "initContainers"):
                for inner in _LISTS_OF_CONTAINER:
                    _objects(element, f"spec.{field}[{number}].", inner)
    return template


def _object(parent: Mapping[str, Any], path: str, field: str) -> Mapping[str, Any]:
    value = parent.get(field)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{path}{field} is {value!r}: write an object")
    return value


def _objects(parent: Mapping[str, Any], path: str, field: str) -> list[Mapping[str, Any]]:
    value = parent.get(field)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(element, Mapping) for element in value):
        raise ValueError(f"{path}{field} is {value!r}: write a list of objects")
    return value


PodTemplate = Annotated[Opaque, AfterValidator(checked_pod_template)]
