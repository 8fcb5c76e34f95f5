"""/v1/completions: the request, the answer and its chunks."""

from __future__ import annotations

import time
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, Field, model_validator

from quire_engine.server.logprobs import CompletionLogprobs, PromptLogprobs
from quire_engine.server.protocol.fields import Logprobs, Text, TokenIds
from quire_engine.server.protocol.generation import GenerationRequest
from quire_engine.server.protocol.refused_fields import OF_COMPLETIONS, RefusedFields
from quire_engine.server.protocol.usage import Usage
from quire_engine.server.request_ids import answer_id


class CompletionRequest(GenerationRequest):
    refused_fields: ClassVar[RefusedFields] = OF_COMPLETIONS

    prompt: (
        Text
        | Annotated[list[Text], Field(fail_fast=True)]
        | TokenIds
        | Annotated[list[TokenIds], Field(fail_fast=True)]
    )

    max_tokens: int | None = Field(default=None, ge=0)
    logprobs: Logprobs | None = None
    echo: bool | None = False
    add_special_tokens: bool = True

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def num_prompt_logprobs(self) -> int | None:
        asked = [n for n in (self.prompt_logprobs, self.logprobs if self.echo else None) if n is not None]
        return max(asked, default=None)

    @property
    def num_prompts(self) -> int:
        one = isinstance(self.prompt, str) or isinstance(next(iter(self.prompt), None), int)
        return 1 if one else len(self.prompt)

    @model_validator(mode="after")
    def _check_echo(self) -> CompletionRequest:
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens is 0: it must be at least 1, or 0 with echo")
        if self.stream and self.echo and self.logprobs is not None and self.num_answers > 1:
            raise ValueError(
                f"echo with logprobs can be streamed for one answer a prompt, and n is {self.n}: set stream to false"
            )
        return self


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] | None = None


class CompletionResponse(BaseModel):
    id: str = Field(default_factory=lambda: answer_id("cmpl"))
    object: Literal["text_completion"] = "text_completion"
    created: int = Field(default_factory=lambda: int(time.time()))
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
