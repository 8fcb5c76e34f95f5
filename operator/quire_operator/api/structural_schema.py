"""Turns a pydantic model into the structural OpenAPI schema that a CustomResourceDefinition needs."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from quire_operator.api.fields import Fields

JsonSchema = dict[str, Any]

_ANNOTATIONS = ("description", "default")
_DROPPED = ("title", "discriminator")


class _WithDefaults(GenerateJsonSchema):
    """Pydantic leaves default factories out. Without `default: {}` for a group of fields, the API server would never
    fill the defaults inside it, and rules over them would fail with `no such key`."""

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchema:
        factory = schema.get("default_factory")
        json_schema = super().default_schema(schema)
        if isinstance(factory, type) and issubclass(factory, BaseModel):
            return self._beside_reference(json_schema, {})
        if factory is not None and factory not in (dict, list):
            # pydantic's factories may take validated data; ours never do
            return self._beside_reference(json_schema, factory())  # type: ignore[call-arg]
        return json_schema

    @staticmethod
    def _beside_reference(json_schema: JsonSchema, default: Any) -> JsonSchema:
        return {**json_schema, "default": default}


def structural_schema(model: type[Fields]) -> JsonSchema:
    """The schema of `model` with references inlined, nulls and titles gone, and its rules as CEL."""
    schema = model.model_json_schema(by_alias=True, schema_generator=_WithDefaults)
    definitions = schema.pop("$defs", {})
    rules = {cls.__name__: cls.rules for cls in _models_below(model)}
    return _convert(schema, definitions, rules, name=model.__name__)


def _models_below(model: type[Fields]) -> set[type[Fields]]:
    found: set[type[Fields]] = {model}
    frontier = [Fields]
    while frontier:
        for subclass in frontier.pop().__subclasses__():
            found.add(subclass)
            frontier.append(subclass)
    return found


def _convert(schema: JsonSchema, definitions: JsonSchema, rules: dict[str, Any], name: str | None = None) -> JsonSchema:
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        # the field's own description and default say more than those of its type
        schema = {**definitions[name], **{key: value for key, value in schema.items() if key != "$ref"}}
    if "anyOf" in schema:
        return _convert(_without_null(schema), definitions, rules)
    result = {key: value for key, value in schema.items() if key not in _DROPPED}
    if result.get("default", ...) is None:
        del result["default"]
    if "description" in result and _is_worth_telling(result.get("default")):
        # `kubectl explain` shows descriptions, and no defaults
        result["description"] += f" Default: {json.dumps(result['default']).strip(chr(34))}."
    if "const" in result:
        result["enum"] = [result.pop("const")]
    for limit, base in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if limit in result:
            result[base], result[limit] = result[limit], True
    if result.pop("additionalProperties", None) not in (None, False) and "additionalProperties" in schema:
        value = schema["additionalProperties"]
        if value is True:
            result["x-kubernetes-preserve-unknown-fields"] = True
        else:
            result["additionalProperties"] = _convert(value, definitions, rules)
    if result.get("type") == "object" and "properties" not in result and "additionalProperties" not in result:
        result["x-kubernetes-preserve-unknown-fields"] = True
    if "properties" in result:
        result["properties"] = {
            field: _convert(value, definitions, rules) for field, value in result["properties"].items()
        }
    if "items" in result:
        result["items"] = _convert(result["items"], definitions, rules)
    own_rules = [rule.as_validation() for rule in rules.get(name or "", ())]
    if own_rules:
        result["x-kubernetes-validations"] = [*result.get("x-kubernetes-validations", []), *own_rules]
    return result


def _is_worth_telling(default: object) -> bool:
    return isinstance(default, bool | int | float | str) and default != ""


def _without_null(schema: JsonSchema) -> JsonSchema:
    arms = [arm for arm in schema["anyOf"] if arm.get("type") != "null"]
    if len(arms) != 1:
        raise ValueError(f"a structural schema has no unions: give {arms} a schema of its own with WithJsonSchema")
    return {**arms[0], **{key: value for key, value in schema.items() if key != "anyOf"}}
