"""What an answer has to look like. Plain data: it crosses the socket between server and engine."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any

KINDS = ("json", "regex", "choice", "grammar", "json_object", "calls", "structural_tag")
MAX_CHARACTERS = 128 * 1024
MAX_CHOICES = 4096
_NAMED_IN_MESSAGES = "json, regex, choice, grammar, json_object, structural_tag"


@dataclass(frozen=True)
class AfterReasoning:
    """The tags around reasoning, which a form leaves free. `begun` says that the prompt ends inside of it already;
    else an answer may begin with the start tag, or come at once."""

    start: str
    end: str
    begun: bool


@dataclass(kw_only=True)
class StructuredOutputsParams:
    """A constraint on an answer's text; exactly one of `KINDS`. Names are vLLM's, but for `calls`.

    `json` is a JSON schema as an object or as text, and is kept as text; `regex` has to match the whole answer, its
    classes being those of ASCII; `choice` lists the answers; `grammar` is EBNF with `root ::= ...` as in GBNF, or
    Lark with `start: ...`; `json_object` asks for any JSON object; `calls` for a list of calls of tools, or of one with
    `one_call`, as [{"name": ..., "parameters": ...}, ...], and has the tools' names with the JSON schemas of their
    parameters as text; `structural_tag`, an object or text, for free text with parts of a form in it (see
    `structured.structural_tag`). Between JSON's parts there is whitespace as in `whitespace_pattern`, a regex, or none
    with `disable_any_whitespace`. With `after_reasoning` the form holds for what follows reasoning.
    Raises `ValueError` that names the field, the value and the limit; whether the text means anything is found out
    when it is compiled.
    """

    json: str | dict[str, Any] | bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool = False
    whitespace_pattern: str | None = None
    calls: list[tuple[str, str]] | None = None
    one_call: bool = False
    after_reasoning: AfterReasoning | None = None
    structural_tag: str | dict[str, Any] | None = None

    def __post_init__(self) -> None:
        given = [name for name in KINDS if getattr(self, name) not in (None, False) or self._is_false_schema(name)]
        if len(given) != 1:
            found = f"sets {' and '.join(given)}" if given else "sets none of them"
            raise ValueError(f"structured_outputs {found}: it needs exactly one of {_NAMED_IN_MESSAGES}")
        if self.json is not None and not isinstance(self.json, str):
            self.json = _as_text("json", self.json)
        if self.structural_tag is not None and not isinstance(self.structural_tag, str):
            self.structural_tag = _as_text("structural_tag", self.structural_tag)
        for name in ("json", "regex", "grammar", "structural_tag", "whitespace_pattern"):
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, str):
                raise ValueError(f"structured_outputs.{name} is of type {type(value).__name__}: it must be a string")
            _check_text(name, value)
        if self.choice is not None:
            self._check_choice(self.choice)
        if self.calls is not None:
            _check_text("calls", "".join(name + schema for name, schema in self.calls))

    @property
    def kind(self) -> str:
        """The name of the field that is set."""
        return next(name for name in KINDS if getattr(self, name) not in (None, False) or self._is_false_schema(name))

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for constraints that allow the same answers in the same way."""
        values = (getattr(self, f.name) for f in fields(self))
        return tuple(tuple(v) if isinstance(v, list) else v for v in values)

    def _is_false_schema(self, name: str) -> bool:
        return name == "json" and self.json is False

    def _check_choice(self, choice: object) -> None:
        if not isinstance(choice, list) or any(not isinstance(c, str) or not c for c in choice) or not choice:
            raise ValueError("structured_outputs.choice must be a list of strings, each with at least one character")
        if len(choice) > MAX_CHOICES:
            raise ValueError(f"structured_outputs.choice has {len(choice)} strings: it may have {MAX_CHOICES}")
        _check_text("choice", "".join(choice))


def _as_text(name: str, value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"structured_outputs.{name} is not JSON: {error}") from error


def _check_text(name: str, text: str) -> None:
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"structured_outputs.{name} has {len(text)} characters: it may have {MAX_CHARACTERS}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"structured_outputs.{name} holds half of a surrogate pair: write both halves") from error
