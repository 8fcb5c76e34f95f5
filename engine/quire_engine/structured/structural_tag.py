"""Structural tags: free text in which certain beginnings open a part that has a form, as grammars of llguidance.

vLLM takes them in two ways, and so do we: {"structures": [{"begin", "schema", "end"}, ...], "triggers": [...]}, and
{"format": ...} as xgrammar has it, of formats within formats. Tags are text: no special token stands for one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from quire_engine.structured.lark import quoted
from quire_engine.structured_outputs import StructuredOutputsParams

MAX_NESTING = 32
_FIELD = "structured_outputs.structural_tag"
_LEAVES = {"json_schema": ("json", "json_schema"), "regex": ("regex", "pattern"), "grammar": ("grammar", "grammar")}
_FREE = ("any_text", "triggered_tags")
_TYPES = ("const_string", *_LEAVES, "any_text", "sequence", "or", "tag", "triggered_tags", "tags_with_separator")

Leaf = Callable[[StructuredOutputsParams], str]


def tag_grammar(text: str, leaf: Leaf) -> str:
    """The grammar of a structural tag in JSON, as llguidance's JSON. `leaf` gives that of one form in a tag.

    Raises `ValueError` that names the part that is wrong.
    """
    try:
        tag = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{_FIELD} is not JSON: {error}") from error
    if not isinstance(tag, dict) or ("format" in tag) == ("structures" in tag):
        raise ValueError(f"{_FIELD} must be an object with either format, or structures and triggers")
    writer = _Writer(leaf)
    if "format" in tag:
        return writer.whole(writer.write(tag["format"], "format", last=True))
    try:
        return writer.whole(writer.write(_as_format(tag), "", last=True))
    except ValueError as error:
        older = str(error).replace(".tags.", ".structures.").replace(".content.json_schema", ".schema")
        raise ValueError(older) from error


def _as_format(tag: dict[str, Any]) -> dict[str, Any]:
    """The older way in terms of the newer."""
    structures = tag["structures"]
    if not isinstance(structures, list):
        raise ValueError(f"{_FIELD}.structures must be a list")
    tags = []
    for i, structure in enumerate(structures):
        if not isinstance(structure, dict) or not structure.keys() >= {"begin", "end"}:
            raise ValueError(f"{_FIELD}.structures.{i} must be an object with begin, schema and end")
        content = {"type": "json_schema", "json_schema": structure.get("schema", True)}
        tags.append({"type": "tag", "begin": structure["begin"], "content": content, "end": structure["end"]})
    return {"type": "triggered_tags", "triggers": tag.get("triggers"), "tags": tags}


class _Writer:
    """Writes rules of Lark, and beside them a grammar for each form that is in a tag."""

    def __init__(self, leaf: Leaf) -> None:
        self._leaf = leaf
        self._rules: list[str] = []
        self._grammars: list[dict[str, Any]] = []
        self._num_names = 0

    def whole(self, start: str) -> str:
        rules = [f"start: {start}", r"TEXT: /(.|\n)*/", *self._rules]
        return json.dumps({"grammars": [{"lark_grammar": "\n".join(rules)}, *self._grammars]})

    def write(self, wanted: object, path: str, *, last: bool = False, ends: Sequence[str] = (), depth: int = 0) -> str:
        """An expression for a format, followed by one of `ends`. Free text needs either, or to be `last` in all."""
        kind = wanted.get("type") if isinstance(wanted, dict) else None
        if not isinstance(wanted, dict) or kind not in _TYPES:
            said = f" is {kind!r}, which" if kind else ""
            raise ValueError(f"{_at(path, 'type')}{said} is not supported: it must be one of {', '.join(_TYPES)}")
        if depth == MAX_NESTING:
            raise ValueError(f"{_at(path)} is nested {depth} deep, which is too much")
        if kind in _FREE:
            return self._free(wanted, path, ends, last, depth)
        if kind == "tag":
            return self._tag(wanted, path, "", depth) + self._literals(ends)
        if kind == "or":
            options = self._list(wanted, path, "elements")
            written = [
                self.write(one, f"{path}.elements.{i}", last=last, ends=ends, depth=depth + 1)
                for i, one in enumerate(options)
            ]
            return self._rule(" | ".join(written))
        if kind == "sequence":
            return self._sequence(wanted, path, last, ends, depth)
        return self._form(wanted, path, depth) + self._literals(ends)

    def _form(self, wanted: dict[str, Any], path: str, depth: int) -> str:
        kind = wanted["type"]
        if kind == "const_string":
            return quoted(_text(wanted, path, "value"))
        if kind == "tags_with_separator":
            tags = self._tags(wanted, path, depth)
            separator = wanted.get("separator")
            if not isinstance(separator, str):
                raise ValueError(f"{_at(path, 'separator')} must be a string")
            any_tag = self._rule(" | ".join(tags))
            more = "" if wanted.get("stop_after_first") else f" ({quoted(separator)} {any_tag})*"
            made = self._rule(f"{any_tag}{more}")
            return made if wanted.get("at_least_one") else f"{made}?"
        field, name = _LEAVES[kind]
        if wanted.get(name) is None:
            raise ValueError(f"{_at(path, name)} is missing")
        try:
            text = self._leaf(StructuredOutputsParams(**{field: wanted[name]}))
        except ValueError as error:
            reason = str(error).replace(f"structured_outputs.{field}", _at(path, name))
            raise ValueError(reason if reason.startswith(_FIELD) else f"{_at(path, name)}: {reason}") from error
        # A grammar of JSON schemas is JSON, and else it is Lark.
        own = json.loads(text)["grammars"][0] if text.startswith("{") else {"lark_grammar": text}
        self._grammars.append({**own, "name": f"form_{len(self._grammars)}"})
        return f"@form_{len(self._grammars) - 1}"

    def _free(self, wanted: dict[str, Any], path: str, ends: Sequence[str], last: bool, depth: int) -> str:
        """Free text up to the first of `ends`, with tags in it where its first trigger comes before."""
        if not ends and not last:
            raise ValueError(
                f"{_at(path)} is free text whose end nobody can tell: have a const_string or a tag follow it, "
                "or put it into a tag"
            )
        end = self._lazy(ends) if ends else "TEXT"
        if wanted["type"] == "any_text":
            return end
        triggers = self._list(wanted, path, "triggers")
        for i, trigger in enumerate(triggers):
            if not isinstance(trigger, str) or not trigger:
                raise ValueError(f"{_at(path, f'triggers.{i}')} must be a string of at least one character")
            if any(isinstance(other, str) and other in trigger for j, other in enumerate(triggers) if j != i):
                raise ValueError(f"{_at(path, f'triggers.{i}')} holds another trigger: leave one of them out")
        groups: dict[str, list[str]] = {trigger: [] for trigger in triggers}
        for i, tag in enumerate(self._list(wanted, path, "tags")):
            begin = tag.get("begin") if isinstance(tag, dict) else None
            trigger = next((t for t in triggers if isinstance(begin, str) and begin.startswith(t)), None)
            if trigger is None:
                raise ValueError(f"{_at(path, f'tags.{i}.begin')} is {begin!r}: it must begin with one of the triggers")
            groups[trigger].append(self._tag(tag, f"{path}.tags.{i}", trigger, depth))
        unused = next((trigger for trigger, tags in groups.items() if not tags), None)
        if unused is not None:
            raise ValueError(f"{_at(path, 'triggers')} holds {unused!r}, with which no tag begins: leave it out")
        triggered = [f"{self._lazy([trigger])} ({' | '.join(tags)})" for trigger, tags in groups.items()]
        any_tag = self._rule(" | ".join(triggered))
        if wanted.get("stop_after_first"):
            after = f"{any_tag}{self._literals(ends)}"
            return self._rule(after if wanted.get("at_least_one") else f"{after} | {end}")
        return self._rule(f"{any_tag}{'+' if wanted.get('at_least_one') else '*'} {end}")

    def _tag(self, tag: object, path: str, begun: str, depth: int) -> str:
        """A tag, of whose beginning `begun` has been read."""
        if not isinstance(tag, dict) or tag.get("type", "tag") != "tag":
            raise ValueError(f"{_at(path)} must be an object of the type tag")
        begin = _text(tag, path, "begin")
        ends = tag.get("end")
        ends = ends if isinstance(ends, list) else [ends]
        if not ends or any(not isinstance(end, str) for end in ends):
            raise ValueError(f"{_at(path, 'end')} must be a string, or a list of strings")
        if "" in ends:
            ends = []
        content = self.write(tag.get("content"), f"{path}.content", ends=ends, depth=depth + 1)
        rest = begin.removeprefix(begun)
        return self._rule(f"{quoted(rest)} {content}" if rest else content)

    def _tags(self, wanted: dict[str, Any], path: str, depth: int) -> list[str]:
        tags = self._list(wanted, path, "tags")
        return [self._tag(tag, f"{path}.tags.{i}", "", depth) for i, tag in enumerate(tags)]

    def _sequence(self, wanted: dict[str, Any], path: str, last: bool, ends: Sequence[str], depth: int) -> str:
        elements = self._list(wanted, path, "elements")
        written, begun = [], ""
        for i, element in enumerate(elements):
            here, at_end = f"{path}.elements.{i}", i == len(elements) - 1
            kind = element.get("type") if isinstance(element, dict) else None
            follows = _beginning(elements[i + 1]) if not at_end and kind in _FREE else ""
            own_ends = (ends if at_end else [follows]) if at_end or follows else ()
            if begun and kind == "tag":
                written.append(self._tag(element, here, begun, depth) + self._literals(own_ends))
            elif begun:  # all of the string has been read
                written.append(self._literals(own_ends))
            else:
                written.append(self.write(element, here, last=last and at_end, ends=own_ends, depth=depth + 1))
            begun = follows
        return self._rule(" ".join(written))

    def _list(self, wanted: dict[str, Any], path: str, name: str) -> list[Any]:
        found = wanted.get(name)
        if not isinstance(found, list) or not found:
            raise ValueError(f"{_at(path, name)} must be a list of at least one")
        return found

    def _rule(self, expression: str) -> str:
        name = self._name()
        self._rules.append(f"{name}: {expression}")
        return name

    def _lazy(self, ends: Sequence[str]) -> str:
        """Text up to the first of `ends`, with it."""
        name = self._name()
        self._rules.append(f"{name}[lazy]: TEXT ({' | '.join(map(quoted, ends))})")
        return name

    def _literals(self, ends: Sequence[str]) -> str:
        return f" ({' | '.join(map(quoted, ends))})" if ends else ""

    def _name(self) -> str:
        self._num_names += 1
        return f"rule_{self._num_names}"


def _beginning(element: object) -> str:
    """What a format always begins with, as far as that is plain."""
    if not isinstance(element, dict):
        return ""
    name = {"const_string": "value", "tag": "begin"}.get(str(element.get("type")))
    found = element.get(name) if name else None
    return found if isinstance(found, str) else ""


def _text(wanted: dict[str, Any], path: str, name: str) -> str:
    found = wanted.get(name)
    if not isinstance(found, str) or not found:
        raise ValueError(f"{_at(path, name)} must be a string of at least one character")
    return found


def _at(*path: str) -> str:
    return ".".join((_FIELD, *(part.strip(".") for part in path if part)))
