"""/v1/chat/completions: the request, the answer and its chunks."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any, ClassVar, Literal

from msgspec import UNSET, Struct, UnsetType
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from quire_engine.server.forms import Form
from quire_engine.server.logprobs import ChatLogprobs, PromptLogprobs
from quire_engine.server.protocol.fields import Logprobs, Text
from quire_engine.server.protocol.generation import GenerationRequest
from quire_engine.server.protocol.refused_fields import OF_CHATS, RefusedFields
from quire_engine.server.protocol.tools import (
    NamedToolChoice,
    PastToolCall,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
    Tools,
    chosen_place,
)
from quire_engine.server.protocol.usage import Usage
from quire_engine.server.request_ids import answer_id
from quire_engine.structured_outputs import StructuredOutputsParams
from quire_engine.text.image_parts import template_content


class ImageUrl(BaseModel):
    url: str


ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]

# Of models that take sounds and films, which none here does.
_OTHER_PARTS = ("input_audio", "audio_url", "video_url", "video", "file")


class ContentPart(BaseModel):
    type: Literal["text", "image_url"]
    text: Text | None = None
    image_url: ImageUrl | None = None

    @field_validator("type", mode="before")
    @classmethod
    def _check_known(cls, value: object) -> object:
        if value in _OTHER_PARTS:
            raise ValueError(f"{value} is not supported: only parts of the types text and image_url are taken")
        return value

    @model_validator(mode="after")
    def _check_kind(self) -> ContentPart:
        for name, value in (("text", self.text), ("image_url", self.image_url)):
            if (name == self.type) != (value is not None):
                raise ValueError(f"a part of the type {self.type} has {self.type}, and nothing else: check {name}")
        return self


class ChatMessage(BaseModel):
    model_config = ConfigDict(extra="allow")

    role: Annotated[str, Field(min_length=1)]
    content: Text | Annotated[list[ContentPart], Field(fail_fast=True)] | None = None
    tool_calls: Annotated[list[PastToolCall], Field(fail_fast=True)] | None = None
    reasoning: Text | None = None
    reasoning_content: Text | None = None

    @property
    def text(self) -> str:
        """What it says, without its images."""
        parts = self.content or ""
        return parts if isinstance(parts, str) else "".join(part.text or "" for part in parts)

    @property
    def num_images(self) -> int:
        parts = self.content if isinstance(self.content, list) else ()
        return sum(part.image_url is not None for part in parts)

    def as_template_input(self, image_token: str | None = None, *, in_parts: bool = False) -> dict[str, Any]:
        """The message as chat templates expect it: its parts joined, or as a list for those that see images."""
        parts = self.content or []
        texts = [parts] if isinstance(parts, str) else [part.text for part in parts]
        content = template_content(texts, image_token, in_parts=in_parts)
        made = {**(self.model_extra or {}), "role": self.role, "content": content}
        if self.tool_calls:  # some templates ask only whether the key is there
            made["tool_calls"] = [call.as_template_input() for call in self.tool_calls]
        thought = self.reasoning or self.reasoning_content
        if thought:  # templates know it by either name
            made["reasoning"] = made["reasoning_content"] = thought
        return made


class ChatPrompt(BaseModel):
    """The fields that say what the prompt of a chat is."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    tools: Tools | None = None
    add_special_tokens: bool = False
    documents: list[dict[str, Any]] | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: ReasoningEffort | None = None

    @property
    def template_kwargs(self) -> dict[str, Any]:
        """What the template is given by name. Those that know no effort know, at least, whether to think."""
        effort, given = self.reasoning_effort, self.chat_template_kwargs or {}
        asked = {} if effort is None else {"reasoning_effort": effort, "enable_thinking": effort != "none"}
        return {**asked, **given}

    @property
    def begins_an_answer(self) -> bool:
        """Whether the template ends with the beginning of an answer."""
        asked = self.add_generation_prompt
        return not self.continue_final_message if asked is None else asked

    @model_validator(mode="after")
    def _check_tools(self) -> ChatPrompt:
        names = [tool.function.name for tool in self.tools or ()]
        twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
        if twice is not None:
            raise ValueError(f"tools holds two functions of the name {twice!r}: each needs a name of its own")
        return self

    @model_validator(mode="after")
    def _check_prompt(self) -> ChatPrompt:
        if self.chat_template is not None:
            raise ValueError("chat_template is the server's: leave it out, or start the server with --chat-template")
        if self.continue_final_message and self.add_generation_prompt:
            raise ValueError("continue_final_message and add_generation_prompt are both true: leave one out")
        return self


class ChatCompletionRequest(GenerationRequest, ChatPrompt):
    refused_fields: ClassVar[RefusedFields] = OF_CHATS

    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: Logprobs | None = None
    echo: bool = False
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = True
    include_reasoning: bool = True

    @property
    def may_call(self) -> bool:
        """Whether it is the model's choice to call a tool."""
        return bool(self.tools) and self.tool_choice in (None, "auto")

    @property
    def must_call(self) -> bool:
        return self.tool_choice == "required" or isinstance(self.tool_choice, NamedToolChoice)

    def form(self) -> Form | None:
        asked = super().form()
        if not self.must_call:
            return asked
        if asked is not None:
            raise ValueError(f"tool_choice demands a call and {asked.field} another form: leave one out")
        if isinstance(self.tool_choice, NamedToolChoice):
            place = chosen_place(self.tools or (), self.tool_choice.function.name)
            assert place is not None
            return Form(
                f"tools.{place}.function.parameters", StructuredOutputsParams(json=self._arguments_schema(place))
            )
        calls = [
            (tool.function.name, json.dumps(self._arguments_schema(i), ensure_ascii=False))
            for i, tool in enumerate(self.tools or ())
        ]
        return Form("tools", StructuredOutputsParams(calls=calls, one_call=self.parallel_tool_calls is False))

    def _arguments_schema(self, place: int) -> dict[str, Any]:
        assert self.tools is not None
        try:
            return self.tools[place].function.arguments_schema
        except ValueError as error:
            raise ValueError(f"tools.{place}.function.parameters {error}") from error

    @model_validator(mode="after")
    def _check_tool_choice(self) -> ChatCompletionRequest:
        choice = self.tool_choice
        if not self.must_call:
            return self
        if not self.tools:
            raise ValueError("tool_choice demands a call and tools is empty: offer at least one")
        if isinstance(choice, NamedToolChoice) and chosen_place(self.tools, choice.function.name) is None:
            offered = ", ".join(tool.function.name for tool in self.tools)
            raise ValueError(
                f"tool_choice.function.name is {choice.function.name!r} and tools offers {offered}: name one of them"
            )
        if self.echo or self.continue_final_message:
            raise ValueError("tool_choice demands a call: leave echo and continue_final_message out")
        return self

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @model_validator(mode="after")
    def _check_top_logprobs(self) -> ChatCompletionRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError(f"top_logprobs is {self.top_logprobs} without logprobs: set logprobs to true")
        return self


class ChatAnswer(BaseModel):
    role: str = "assistant"
    reasoning: str | None = None
    reasoning_content: str | None = None  # its older name, under which many clients look for it
    content: str | None = None
    tool_calls: list[ToolCall] = Field(default_factory=list)


class ChatDelta(Struct, gc=False):
    role: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChatChoice(BaseModel):
    index: int
    message: ChatAnswer
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None


class ChatChunkChoice(Struct, gc=False):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | UnsetType | None = UNSET  # with the last chunk
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletionResponse(BaseModel):
    id: str = Field(default_factory=lambda: answer_id("chatcmpl"))
    object: Literal["chat.completion"] = "chat.completion"
    created: int = Field(default_factory=lambda: int(time.time()))
    model: str
    choices: list[ChatChoice]
    usage: Usage | None = None
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_ids: list[int] | None = None


class ChatCompletionChunk(Struct, gc=False):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
