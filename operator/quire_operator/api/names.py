"""Names of other objects, and what refers to them."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from quire_operator.api.fields import Fields
from quire_operator.api.rule import Rule

_OBJECT_NAME = r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?"

ObjectName = Annotated[
    str,
    Field(max_length=253),
    Rule(
        cel=f"self.matches('^{_OBJECT_NAME}$')",
        message="not the name of an object: write lower-case letters, digits, '-' and '.', "
        "beginning and ending with a letter or digit",
        holds=lambda text: re.fullmatch(_OBJECT_NAME, text) is not None,
    ),
]

_NAMESPACE_NAME = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"

NamespaceName = Annotated[
    str,
    Field(max_length=63),
    Rule(
        cel=f"self.matches('^{_NAMESPACE_NAME}$')",
        message="not the name of a namespace: write lower-case letters, digits and '-', "
        "beginning and ending with a letter or digit",
        holds=lambda text: re.fullmatch(_NAMESPACE_NAME, text) is not None,
    ),
]

StringMap = Annotated[dict[str, Annotated[str, Field(max_length=4096)]], Field(max_length=64)]
"""Labels, annotations or a node selector."""

Opaque = dict[str, Any]
"""A piece of another API, preserved whole and checked by that API."""


def _of_text(variable: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(variable.get("name"), str) or not variable["name"]:
        raise PydanticCustomError("name", "an environment variable needs a name")
    if not isinstance(variable.get("value", ""), str):
        raise PydanticCustomError("value", "the value of an environment variable is text: write it in quotes")
    return variable


class SecretKeyRef(Fields):
    """One key of a Secret in the LLMService's namespace."""

    name: ObjectName
    """Name of the Secret."""

    key: Annotated[str, Field(min_length=1, max_length=253)]
    """Key in its data."""


class LocalObjectRef(Fields):
    """An object of the LLMService's namespace."""

    name: ObjectName
    """Its name."""


EnvVar = Annotated[
    dict[str, Any],
    WithJsonSchema(
        {
            "type": "object",
            "description": "Name and value, or any valueFrom that a container allows.",
            "properties": {
                "name": {"type": "string", "minLength": 1, "maxLength": 253},
                "value": {"type": "string", "description": "Its value, as text: write numbers and true in quotes."},
            },
            "required": ["name"],
            "x-kubernetes-preserve-unknown-fields": True,
        }
    ),
    AfterValidator(_of_text),
]
"""An environment variable, as a container's. One that Quire sets itself is replaced."""
