"""Tools: what a chat request offers and chooses, what is called, and what was called before."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from msgspec import UNSET, Struct, UnsetType
from pydantic import BaseModel, ConfigDict, Field

from quire_engine.server.protocol.fields import Text

MAX_TOOLS = 128  # OpenAI's
Name = Annotated[Text, Field(min_length=1, max_length=256)]


class FunctionDefinition(BaseModel):
    """`strict` may be either: arguments are held to the schema wherever a call is demanded."""

    model_config = ConfigDict(extra="allow")

    name: Name
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @property
    def arguments_schema(self) -> dict[str, Any]:
        """The JSON schema of the arguments, which are an object. Raises `ValueError` where they cannot be one."""
        if self.parameters is None:
            return {"type": "object", "properties": {}, "additionalProperties": False}
        kind = self.parameters.get("type", "object")
        if kind != "object":
            raise ValueError(f"has the type {kind!r}: arguments are always of the type 'object'")
        return {"type": "object", **self.parameters}


class Tool(BaseModel):
    type: Literal["function"]
    function: FunctionDefinition

    def as_template_input(self) -> dict[str, Any]:
        return self.model_dump(exclude_unset=True)


Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)]


class ChosenFunction(BaseModel):
    name: Name


class NamedToolChoice(BaseModel):
    type: Literal["function"]
    function: ChosenFunction


ToolChoice = Literal["none", "auto", "required"] | NamedToolChoice


def chosen_place(tools: Sequence[Tool], name: str) -> int | None:
    """Where in `tools` the one of this name is."""
    return next((i for i, tool in enumerate(tools) if tool.function.name == name), None)


class PastFunction(BaseModel):
    model_config = ConfigDict(extra="allow")

    name: Name
    arguments: Text | dict[str, Any] | None = None

    @property
    def parsed_arguments(self) -> str | dict[str, Any]:
        """The object that templates expect; the text itself where it is none, as a call that was cut off."""
        if not isinstance(self.arguments, str):
            return self.arguments or {}
        try:
            parsed = json.loads(self.arguments or "{}")
        except (ValueError, RecursionError):
            return self.arguments
        return parsed if isinstance(parsed, dict) else self.arguments


class PastToolCall(BaseModel):
    """A call of an earlier answer, as clients send it back."""

    model_config = ConfigDict(extra="allow")

    id: Text | None = None
    type: Literal["function"] = "function"
    function: PastFunction

    def as_template_input(self) -> dict[str, Any]:
        function = {**(self.function.model_extra or {}), "name": self.function.name}
        function["arguments"] = self.function.parsed_arguments
        own = {**(self.model_extra or {}), "type": self.type, "function": function}
        return own if self.id is None else {**own, "id": self.id}


class CalledFunction(BaseModel):
    name: str
    arguments: str


class ToolCall(BaseModel):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class FunctionDelta(Struct, kw_only=True):
    name: str | UnsetType = UNSET
    arguments: str


class ToolCallDelta(Struct, kw_only=True):
    """The next part of a call: `id`, `type` and the name come with the first one only."""

    index: int
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: FunctionDelta
