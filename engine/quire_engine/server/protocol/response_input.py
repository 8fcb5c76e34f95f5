"""/v1/responses: the items of a request's input."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from quire_engine.server.protocol.fields import Text


class InputText(BaseModel):
    """What a client says, or what was answered before."""

    type: Literal["input_text", "output_text", "text"]
    text: Text


class InputRefusal(BaseModel):
    type: Literal["refusal"]
    refusal: Text


class InputImage(BaseModel):
    """`detail` has no effect. Files that were uploaded before do not exist here."""

    type: Literal["input_image"]
    image_url: str


def _kind_of_part(part: object) -> str:
    kind = part.get("type") if isinstance(part, dict) else getattr(part, "type", None)
    return "of-input_text" if kind in ("output_text", "text") else f"of-{kind}"


InputPart = Annotated[
    Annotated[InputText, Tag("of-input_text")]
    | Annotated[InputRefusal, Tag("of-refusal")]
    | Annotated[InputImage, Tag("of-input_image")],
    Discriminator(_kind_of_part),
]
InputParts = Annotated[list[InputPart], Field(fail_fast=True)]


class InputMessage(BaseModel):
    """A message of either side. The `id` and `status` of an answer have no effect."""

    model_config = ConfigDict(extra="allow")

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Text | InputParts


class InputCall(BaseModel):
    """A call of a function, as it was answered."""

    model_config = ConfigDict(extra="allow")

    type: Literal["function_call"]
    call_id: Text
    name: Text
    arguments: Text


class InputCallOutput(BaseModel):
    """What such a call returned."""

    model_config = ConfigDict(extra="allow")

    type: Literal["function_call_output"]
    call_id: Text
    output: Text | InputParts


class ReasoningText(BaseModel):
    type: Literal["reasoning_text"] = "reasoning_text"
    text: Text


class InputReasoning(BaseModel):
    """What the model thought before an answer."""

    model_config = ConfigDict(extra="allow")

    type: Literal["reasoning"]
    content: list[ReasoningText] | None = None


def _kind_of_item(item: object) -> str:
    kind = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)
    return f"of-{kind}"


InputItem = Annotated[
    Annotated[InputMessage, Tag("of-message")]
    | Annotated[InputCall, Tag("of-function_call")]
    | Annotated[InputCallOutput, Tag("of-function_call_output")]
    | Annotated[InputReasoning, Tag("of-reasoning")],
    Discriminator(_kind_of_item),
]
InputItems = Annotated[list[InputItem], Field(fail_fast=True)]
