"""The fields that ask for answers of a form, in OpenAI's spelling and in both of vLLM's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from quire_engine.structured_outputs import StructuredOutputsParams

Schema = dict[str, Any] | bool | str


@dataclass(frozen=True)
class Form:
    """What an answer has to look like, and the field that says so."""

    field: str
    wanted: StructuredOutputsParams

    def in_its_words(self, message: str) -> str:
        """A message about `structured_outputs` as one about the field that the client set."""
        return message.replace(f"structured_outputs.{self.wanted.kind}", self.field)


class JsonSchema(BaseModel):
    """`strict` may be either: a schema is always kept to the letter."""

    name: str | None = None
    description: str | None = None
    json_schema: dict[str, Any] | bool = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """With "structural_tag" either `structures` and `triggers`, or `format`."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchema | None = None
    structures: list[dict[str, Any]] | None = None
    triggers: list[str] | None = None
    format: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _check_schema(self) -> ResponseFormat:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("response_format.json_schema is missing: it must hold a schema where type is json_schema")
        return self


class StructuredOutputs(BaseModel):
    model_config = ConfigDict(extra="forbid")

    json_schema: Schema | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | dict[str, Any] | None = None
    disable_any_whitespace: bool = False
    whitespace_pattern: str | None = None


class StructuredRequest(BaseModel):
    """The fields themselves. `guided_decoding_backend` has no effect: there is one."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    guided_whitespace_pattern: str | None = None
    guided_decoding_backend: str | None = None

    def form(self) -> Form | None:
        """The form that is asked for. Raises `ValueError` for one that is none, and where two are."""
        forms = [f for f in (self._of_response_format(), self._of_structured_outputs(), *self._guided()) if f]
        if len(forms) > 1:
            raise ValueError(f"{forms[0].field} and {forms[1].field} are both set: leave one out")
        return forms[0] if forms else None

    def _of_response_format(self) -> Form | None:
        asked = self.response_format
        if asked is None or asked.type == "text":
            return None
        if asked.type == "structural_tag":
            tag = {name: getattr(asked, name) for name in ("structures", "triggers", "format")}
            return _form("response_format", structural_tag={n: value for n, value in tag.items() if value is not None})
        if asked.json_schema is None or asked.type == "json_object":
            return _form("response_format", json_object=True)
        return _form("response_format.json_schema", json=asked.json_schema.json_schema)

    def _of_structured_outputs(self) -> Form | None:
        asked = self.structured_outputs
        if asked is None:
            return None
        wanted = StructuredOutputsParams(**asked.model_dump(by_alias=True))
        return Form(f"structured_outputs.{wanted.kind}", wanted)

    def _guided(self) -> list[Form]:
        kinds = ("json", "regex", "choice", "grammar")
        asked = {kind: getattr(self, f"guided_{kind}") for kind in kinds}
        pattern = self.guided_whitespace_pattern
        return [
            _form(f"guided_{kind}", whitespace_pattern=pattern, **{kind: value})
            for kind, value in asked.items()
            if value is not None
        ]


def _form(field: str, **wanted: Any) -> Form:
    try:
        return Form(field, StructuredOutputsParams(**wanted))
    except ValueError as error:
        (kind,) = (name for name in wanted if name != "whitespace_pattern")
        raise ValueError(str(error).replace(f"structured_outputs.{kind}", field)) from error
