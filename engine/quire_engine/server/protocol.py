"""OpenAI's requests and answers as pydantic models, with vLLM's extra sampling fields."""

from __future__ import annotations

import time
import uuid
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from quire_engine.sampling_params import MAX_N, SamplingParams

MAX_STOP_TOKEN_IDS = 1024
MAX_ANSWERS = 1024  # of one request: its prompts, n times each


def _whole_characters(text: str) -> str:
    """JSON can spell half a surrogate pair, which is no character: no tokenizer and no encoding takes it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ord(text[error.start])
        raise ValueError(f"\\u{half:x} is half of a surrogate pair: write both halves, or leave it out") from error
    return text


Text = Annotated[str, AfterValidator(_whole_characters)]
# The first wrong element is reported, and no error is made for each of a million others.
TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(fail_fast=True)]


class StreamOptions(BaseModel):
    include_usage: bool = False


class GenerationRequest(BaseModel):
    """The fields that completions and chat completions share. Fields of other servers are let pass unread."""

    model_config = ConfigDict(extra="allow")
    # Known fields whose machinery is not built: refused when set, so that nobody believes in their effect.
    not_supported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "presence_penalty": (0, None),
        "frequency_penalty": (0, None),
        "repetition_penalty": (1, None),
        "logit_bias": (None, {}),
        "best_of": (None, 1),
        "use_beam_search": (False, None),
        "bad_words": (None, []),
        "allowed_token_ids": (None,),
        "prompt_logprobs": (None,),
        "guided_json": (None,),
        "guided_regex": (None,),
        "guided_choice": (None,),
        "guided_grammar": (None,),
        "structured_outputs": (None,),
        "truncate_prompt_tokens": (None,),
        "priority": (0, None),
        "cache_salt": (None,),
    }

    model: str | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    n: int | None = Field(default=1, ge=1, le=MAX_N)
    seed: int | None = None
    stop: Text | Annotated[list[Text], Field(fail_fast=True)] | None = None
    stop_token_ids: Annotated[TokenIds, Field(max_length=MAX_STOP_TOKEN_IDS)] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: int = 0
    skip_special_tokens: bool = True
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    user: str | None = None

    @model_validator(mode="after")
    def _refuse_what_is_not_built(self) -> GenerationRequest:
        for name, harmless in self.not_supported.items():
            value = (self.model_extra or {}).get(name)
            if value not in harmless:
                raise ValueError(f"{name} is not supported yet: leave it out")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is set without stream: set stream to true, or leave stream_options out")
        return self

    def sampling_params(self, max_tokens: int) -> SamplingParams:
        """The request as sampling parameters. Raises `ValueError` that names the field."""
        given = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "n": self.n,
        }
        return SamplingParams(
            **{name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type]  # mixed values
            seed=self.seed,
            stop=[self.stop] if isinstance(self.stop, str) else list(self.stop or []),
            stop_token_ids=list(self.stop_token_ids or []),
            include_stop_str_in_output=self.include_stop_str_in_output,
            ignore_eos=self.ignore_eos,
            min_tokens=self.min_tokens,
            skip_special_tokens=self.skip_special_tokens,
            max_tokens=max_tokens,
        )


class CompletionRequest(GenerationRequest):
    not_supported: ClassVar[dict[str, tuple[Any, ...]]] = {
        **GenerationRequest.not_supported,
        "logprobs": (None,),
        "echo": (False, None),
        "suffix": (None, ""),
    }

    prompt: (
        Text
        | Annotated[list[Text], Field(fail_fast=True)]
        | TokenIds
        | Annotated[list[TokenIds], Field(fail_fast=True)]
    )

    @model_validator(mode="after")
    def _bound_the_answers(self) -> CompletionRequest:
        one = isinstance(self.prompt, str) or isinstance(next(iter(self.prompt), None), int)
        prompts, n = 1 if one else len(self.prompt), self.n or 1
        if prompts * n > MAX_ANSWERS:
            raise ValueError(
                f"prompt holds {prompts} prompts and n is {n}: one request gives at most {MAX_ANSWERS} answers, "
                "send several"
            )
        return self


class TextPart(BaseModel):
    type: Literal["text"]
    text: Text


class ChatMessage(BaseModel):
    model_config = ConfigDict(extra="allow")

    role: Annotated[str, Field(min_length=1)]
    content: Text | Annotated[list[TextPart], Field(fail_fast=True)] | None = None

    def as_template_input(self) -> dict[str, Any]:
        """The message as chat templates expect it, its text parts joined."""
        text = self.content if isinstance(self.content, str) else "".join(p.text for p in self.content or [])
        return {**(self.model_extra or {}), "role": self.role, "content": text}


class ChatCompletionRequest(GenerationRequest):
    not_supported: ClassVar[dict[str, tuple[Any, ...]]] = {
        **GenerationRequest.not_supported,
        "logprobs": (False, None),
        "top_logprobs": (None, 0),
        "tools": (None, []),
        "tool_choice": (None, "none", "auto"),
        "functions": (None, []),
        "response_format": (None, {"type": "text"}),
        "continue_final_message": (False, None),
        "echo": (False, None),
    }

    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: int | None = Field(default=None, ge=1)
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)


class PromptTokensDetails(BaseModel):
    cached_tokens: int = 0


class Usage(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: PromptTokensDetails | None = None


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class CompletionResponse(BaseModel):
    id: str = Field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    object: Literal["text_completion"] = "text_completion"
    created: int = Field(default_factory=lambda: int(time.time()))
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class ChatAnswer(BaseModel):
    role: str = "assistant"
    content: str | None = None


class ChatDelta(BaseModel):
    role: str | None = None
    content: str | None = None


class ChatChoice(BaseModel):
    index: int
    message: ChatAnswer
    logprobs: None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class ChatChunkChoice(BaseModel):
    index: int
    delta: ChatDelta
    logprobs: None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class ChatCompletionResponse(BaseModel):
    id: str = Field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    object: Literal["chat.completion"] = "chat.completion"
    created: int = Field(default_factory=lambda: int(time.time()))
    model: str
    choices: list[ChatChoice]
    usage: Usage | None = None


class ChatCompletionChunk(BaseModel):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int = Field(default_factory=lambda: int(time.time()))
    owned_by: str = "quire"
    root: str | None = None
    max_model_len: int | None = None


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]
