"""/v1/responses: the request, and the response with its items."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from quire_engine.server.logprobs import ChatTokenLogprob
from quire_engine.server.protocol.chat import ReasoningEffort
from quire_engine.server.protocol.fields import Logprobs, Text
from quire_engine.server.protocol.refused_fields import OF_RESPONSES, refuse
from quire_engine.server.protocol.response_input import InputItems, ReasoningText
from quire_engine.server.protocol.tools import MAX_TOOLS, Name
from quire_engine.server.request_ids import answer_id

Status = Literal["in_progress", "completed", "incomplete", "failed"]
LOGPROBS = "message.output_text.logprobs"  # what `include` calls them


class TextFormat(BaseModel):
    """The form of the answer's text, flat, unlike `response_format` of chats."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: Text | None = None
    description: Text | None = None
    json_schema: dict[str, Any] | bool | None = Field(default=None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _check_schema(self) -> TextFormat:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("text.format.schema is missing: it must be there where type is json_schema")
        return self


class TextConfig(BaseModel):
    format: TextFormat = Field(default_factory=TextFormat)
    verbosity: Literal["low", "medium", "high"] | None = None

    @model_validator(mode="after")
    def _check_verbosity(self) -> TextConfig:
        if self.verbosity not in (None, "medium"):
            raise ValueError("text.verbosity is not supported: say in instructions how long answers are to be")
        return self


class Reasoning(BaseModel):
    effort: ReasoningEffort | None = None
    summary: Text | None = None


class FunctionTool(BaseModel):
    """A function that the model may call, flat, unlike those of chats. Tools that a server would run are not taken."""

    type: Literal["function"]
    name: Name
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedFunction(BaseModel):
    type: Literal["function"]
    name: Name


class ResponsesRequest(BaseModel):
    """Sampling fields that only chats have are taken as well. `store` has no effect: nothing is kept."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    input: Text | InputItems
    instructions: Text | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = None
    top_p: float | None = None
    text: TextConfig | None = None
    include: list[str] | None = None
    top_logprobs: Logprobs | None = None
    reasoning: Reasoning | None = None
    truncation: Literal["auto", "disabled"] | None = None
    stream: bool | None = False
    metadata: Annotated[dict[Text, Text], Field(max_length=16)] | None = None
    user: Text | None = None
    store: bool | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | None = None
    parallel_tool_calls: bool | None = True

    @model_validator(mode="after")
    def _check(self) -> ResponsesRequest:
        if not self.input:
            raise ValueError("input is empty: send a text, or at least one item")
        refuse(self.model_extra or {}, OF_RESPONSES)
        if self.truncation == "auto" and (self.model_extra or {}).get("truncate_prompt_tokens") is not None:
            raise ValueError("truncation is auto and truncate_prompt_tokens is set: leave one out")
        return self

    @property
    def tells_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ()) or bool(self.top_logprobs)


class OutputText(BaseModel):
    type: Literal["output_text"] = "output_text"
    text: str = ""
    annotations: list[str] = Field(default_factory=list)
    logprobs: list[ChatTokenLogprob] = Field(default_factory=list)


class OutputMessage(BaseModel):
    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    status: Status = "in_progress"
    content: list[OutputText] = Field(default_factory=list)


class OutputReasoning(BaseModel):
    id: str
    type: Literal["reasoning"] = "reasoning"
    summary: list[str] = Field(default_factory=list)
    content: list[ReasoningText] = Field(default_factory=list)
    status: Status = "in_progress"


class OutputCall(BaseModel):
    id: str
    type: Literal["function_call"] = "function_call"
    call_id: str
    name: str
    arguments: str = ""
    status: Status = "in_progress"


OutputItem = OutputMessage | OutputReasoning | OutputCall


class InputTokensDetails(BaseModel):
    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputTokensDetails(BaseModel):
    reasoning_tokens: int = 0


class ResponseUsage(BaseModel):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(BaseModel):
    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponseError(BaseModel):
    code: str
    message: str


class ResponseObject(BaseModel):
    id: str = Field(default_factory=lambda: answer_id("resp"))
    object: Literal["response"] = "response"
    created_at: int = Field(default_factory=lambda: int(time.time()))
    completed_at: int | None = None
    status: Status = "in_progress"
    background: bool = False
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    model: str
    output: list[OutputItem] = Field(default_factory=list)
    parallel_tool_calls: bool = True
    previous_response_id: None = None
    reasoning: Reasoning | None = None
    store: bool = False
    temperature: float | None = None
    text: dict[str, Any]  # a `TextConfig` under its names in JSON
    tool_choice: Literal["none", "auto", "required"] | NamedFunction = "auto"
    tools: list[FunctionTool] = Field(default_factory=list)
    top_logprobs: int = 0
    top_p: float | None = None
    truncation: Literal["auto", "disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None = None
