"""Write api.md, the reference of every field, from the API's schema: `python docs/write_api.py` (`make crds`)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quire_operator.api import API_VERSION, KIND, custom_resource_definition

PAGE = Path(__file__).parent / "api.md"

Schema = dict[str, Any]

_INTRODUCTION = f"""\
# The LLMService API

<!-- Written by docs/write_api.py from operator/quire_operator/api: change those, then `make crds`. -->

Every field of `{KIND}` in `{API_VERSION}`, as `kubectl explain llmservice.spec` tells them too. How they
work together, with examples, is in [LLMService](llmservice.md). Each name below links to itself.
Where the API server refuses a value, it says what stands here in *italics*.
"""

_NAMED = {
    "not a quantity above zero": "quantity",
    "not a duration above zero": "duration",
    "not the name of an object": "name",
    "not a number of pods": "number of pods",
    "a source must be": "source",
}
"""Beginning of the message of a type that many fields share, and what the type is called."""


def page() -> str:
    """The whole page."""
    (version,) = custom_resource_definition()["spec"]["versions"]
    root = version["schema"]["openAPIV3Schema"]
    parts = [_INTRODUCTION, *_refusals(root)]
    for name in ("spec", "status"):
        parts += _sections(root["properties"][name], name)
    return "\n".join([*parts, *_values(root)]) + "\n"


def paths(schema: Schema, path: str) -> Iterator[tuple[str, Schema]]:
    """Every field below `path` with its schema, those of a list's elements included."""
    for name, below in schema.get("properties", {}).items():
        yield f"{path}.{name}", below
        yield from paths(_inner(below), f"{path}.{name}")


def _inner(schema: Schema) -> Schema:
    """What has the fields below a field: itself, or the elements of a list."""
    inner: Schema = schema["items"] if schema.get("type") == "array" else schema
    return inner


def _has_section(schema: Schema) -> bool:
    return "properties" in _inner(schema) and not _is_kept(_inner(schema))


def _sections(schema: Schema, path: str) -> Iterator[str]:
    """A heading and a table of the fields, and those of the fields inside them after it."""
    level = "##" if path.count(".") < 2 else "###"
    inner = _inner(schema)
    yield f'<a id="{path}"></a>\n{level} {path}{"" if inner is schema else "[]"}\n'
    yield _text(schema) + "\n"
    yield from _refusals(inner)
    yield "| field | type | |\n|---|---|---|"
    for name, below in inner["properties"].items():
        yield _row(f"{path}.{name}", below, name in inner.get("required", ()))
    yield ""
    for name, below in inner["properties"].items():
        if _has_section(below):
            yield from _sections(below, f"{path}.{name}")


def _row(path: str, schema: Schema, required: bool) -> str:
    anchor = "" if _has_section(schema) else f'<a id="{path}"></a>'
    name = path.rsplit(".", 1)[1]
    facts = [_type(schema), *_limits(schema)]
    if required:
        facts.append("required")
    if _default(schema):
        facts.append(f"default {_default(schema)}")
    told = [_text(schema)]
    if _name_of(schema) is None and not _has_section(schema):
        told += [f"*{_escaped(message)}*" for message in _messages(schema)]
    return f"| {anchor}[`{name}`](#{path}) | {', '.join(facts)} | {'<br>'.join(told)} |"


def _type(schema: Schema) -> str:
    if "enum" in schema:
        values = [f"`{value}`" for value in schema["enum"]]
        return values[0] if len(values) == 1 else f"{', '.join(values[:-1])} or {values[-1]}"
    name = _name_of(schema)
    if name is not None:
        return f"[{name}](#{name.replace(' ', '-')})"
    match schema.get("type"):
        case "array":
            return f"list of {_plural(_type(schema['items']))}"
        case "object" if "additionalProperties" in schema:
            return "map of strings"
        case "object":
            return "object, passed on as it is" if _is_kept(schema) else "object"
        case str(kind):
            return kind
    return "integer or string"


def _plural(kind: str) -> str:
    match kind.split(","):
        case [word]:
            return f"{word[: word.index(']')]}s{word[word.index(']') :]}" if word.startswith("[") else f"{word}s"
        case [word, *rest] if word == "object":
            return ",".join([f"{word}s", *rest]).replace("it is", "they are")
    return kind


def _is_kept(schema: Schema) -> bool:
    return bool(schema.get("x-kubernetes-preserve-unknown-fields"))


def _limits(schema: Schema) -> Iterator[str]:
    for least, most, unit in (
        ("minimum", "maximum", ""),
        ("minItems", "maxItems", ""),
        ("", "maxLength", " characters"),
    ):
        low, high = schema.get(least), schema.get(most)
        if unit and _name_of(schema) is not None:
            continue
        if low is not None and high is not None:
            yield f"{low} to {high}{unit}"
        elif high is not None:
            yield f"at most {high}{unit}"
        elif low is not None:
            yield f"at least {low}{unit}"


def _default(schema: Schema) -> str:
    default = schema.get("default")
    if default in (None, "", {}, []):
        return ""
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"


def _text(schema: Schema) -> str:
    """The description; what it adds for `kubectl explain` about the default has a place of its own here."""
    text = schema.get("description", "")
    default = json.dumps(schema.get("default")).strip('"')
    return _escaped(text.removesuffix(f" Default: {default}."))


def _messages(schema: Schema) -> list[str]:
    return [rule["message"] for rule in schema.get("x-kubernetes-validations", ())]


def _refusals(schema: Schema) -> Iterator[str]:
    """What is said when fields do not go together."""
    messages = _messages(schema)
    if messages:
        yield "\n".join(f"- *{_escaped(message)}*" for message in messages) + "\n"


def _name_of(schema: Schema) -> str | None:
    """What the type of a field is called, where several fields share it."""
    first = next(iter(_messages(schema)), "")
    return next((name for begins, name in _NAMED.items() if first.startswith(begins)), None)


def _values(root: Schema) -> Iterator[str]:
    """The types that fields share."""
    yield "## Values\n"
    every = [schema for name in ("spec", "status") for _, schema in paths(root["properties"][name], name)]
    for name in _NAMED.values():
        shared = next(schema for schema in every if _name_of(schema) == name)
        yield f"### {name}\n"
        yield "\n".join(f"- *{_escaped(message)}*" for message in _messages(shared)) + "\n"


def _escaped(text: str) -> str:
    for character in "*_<":
        text = text.replace(character, f"\\{character}")
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    PAGE.write_text(page())
