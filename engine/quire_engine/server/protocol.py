"""OpenAI's requests and answers as pydantic models, with vLLM's extra sampling fields."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from quire_engine.sampling_params import (
    MAX_BAD_WORDS,
    MAX_LOGIT_BIAS,
    MAX_N,
    NOT_WITH_BEAMS,
    EarlyStopping,
    SamplingParams,
)
from quire_engine.server.forms import StructuredRequest
from quire_engine.server.logprobs import ChatLogprobs, CompletionLogprobs, PromptLogprobs
from quire_engine.structured_outputs import StructuredOutputsParams

MAX_STOP_TOKEN_IDS = 1024
MAX_ANSWERS = 1024  # of one request: its prompts, n or best_of times each
MAX_ALLOWED = 2**22  # entries of allowed_token_ids over all answers, each of which carries its own
MAX_LOGPROBS = 20  # OpenAI's


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


def _few_entries(biases: object) -> object:
    """Looked at first, so that no error is made for each of a million wrong entries."""
    if isinstance(biases, dict) and len(biases) > MAX_LOGIT_BIAS:
        raise ValueError(f"logit_bias holds {len(biases)} tokens: it must be at most {MAX_LOGIT_BIAS}")
    return biases


LogitBias = Annotated[dict[int, float], BeforeValidator(_few_entries)]
Logprobs = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]
CacheSalt = Annotated[str, Field(min_length=1), AfterValidator(_whole_characters)]


class StreamOptions(BaseModel):
    include_usage: bool = False


class GenerationRequest(StructuredRequest):
    """The fields that completions and chat completions share. Fields of other servers are let pass unread."""

    model_config = ConfigDict(extra="allow")
    # Known fields whose machinery is not built: refused when set, so that nobody believes in their effect.
    not_supported: ClassVar[dict[str, tuple[Any, ...]]] = {}

    model: str | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: LogitBias | None = None
    allowed_token_ids: TokenIds | None = None
    bad_words: Annotated[list[Text], Field(fail_fast=True, max_length=MAX_BAD_WORDS)] | None = None
    n: int | None = Field(default=1, ge=1, le=MAX_N)
    best_of: int | None = Field(default=None, ge=1, le=MAX_N)
    use_beam_search: bool = False
    length_penalty: float | None = None
    early_stopping: EarlyStopping = False
    seed: int | None = None
    stop: Text | Annotated[list[Text], Field(fail_fast=True)] | None = None
    stop_token_ids: Annotated[TokenIds, Field(max_length=MAX_STOP_TOKEN_IDS)] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: int = 0
    skip_special_tokens: bool = True
    prompt_logprobs: Logprobs | None = None
    truncate_prompt_tokens: int | None = Field(default=None, ge=-1)
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None
    cache_salt: CacheSalt | None = None
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

    @model_validator(mode="after")
    def _refuse_what_cannot_be_streamed(self) -> GenerationRequest:
        if self.stream and self.prompt_logprobs is not None:
            raise ValueError("prompt_logprobs cannot be streamed: set stream to false, or leave prompt_logprobs out")
        if self.stream and self.num_answers > (self.n or 1):
            raise ValueError(
                f"best_of is {self.best_of}: the best cannot be streamed before all are there, leave it out"
            )
        return self

    @model_validator(mode="after")
    def _bound_the_answers(self) -> GenerationRequest:
        prompts, n, allowed = self.num_prompts, self.num_sequences, len(self.allowed_token_ids or ())
        if prompts * n > MAX_ANSWERS:
            raise ValueError(
                f"prompt holds {prompts} prompts and n is {n}: one request gives at most {MAX_ANSWERS} answers, "
                "send several"
            )
        if prompts * n * allowed > MAX_ALLOWED:
            raise ValueError(
                f"allowed_token_ids holds {allowed} tokens, for {prompts * n} answers: the product must be at most "
                f"{MAX_ALLOWED}, send several requests"
            )
        return self

    @property
    def num_prompts(self) -> int:
        return 1

    @property
    def num_sequences(self) -> int:
        """How many answers are made for a prompt, or beams."""
        return self.best_of or self.n or 1

    @property
    def num_answers(self) -> int:
        """How many answers to a prompt come from the engine."""
        return (self.n or 1) if self.use_beam_search else self.num_sequences

    @property
    def num_logprobs(self) -> int | None:
        """How many of the likeliest tokens are to be told beside each; None for no logprobs at all."""
        raise NotImplementedError  # each endpoint has a field of its own for it

    @property
    def num_prompt_logprobs(self) -> int | None:
        """As `num_logprobs`, for the prompt."""
        return self.prompt_logprobs

    @property
    def tells_logprobs(self) -> bool:
        return self.num_logprobs is not None or self.num_prompt_logprobs is not None

    def sampling_params(
        self, max_tokens: int, structured_outputs: StructuredOutputsParams | None, defaults: Mapping[str, int | float]
    ) -> SamplingParams:
        """The request as sampling parameters, with `defaults` for what it leaves out, where these can have an effect.

        Raises `ValueError` that names the field.
        """
        given = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "n": self.n,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "repetition_penalty": self.repetition_penalty,
            "length_penalty": self.length_penalty,
        }
        if self.use_beam_search:
            defaults = {name: value for name, value in defaults.items() if name not in NOT_WITH_BEAMS}
        return SamplingParams(
            **{**defaults, **{name: value for name, value in given.items() if value is not None}},  # type: ignore[arg-type]  # mixed values
            best_of=self.best_of,
            use_beam_search=self.use_beam_search,
            early_stopping=self.early_stopping,
            seed=self.seed,
            logit_bias=self.logit_bias,
            allowed_token_ids=self.allowed_token_ids,
            bad_words=self.bad_words or [],
            logprobs=self.num_logprobs,
            prompt_logprobs=self.num_prompt_logprobs,
            stop=[self.stop] if isinstance(self.stop, str) else list(self.stop or []),
            stop_token_ids=list(self.stop_token_ids or []),
            include_stop_str_in_output=self.include_stop_str_in_output,
            ignore_eos=self.ignore_eos,
            min_tokens=self.min_tokens,
            skip_special_tokens=self.skip_special_tokens,
            structured_outputs=structured_outputs,
            max_tokens=max_tokens,
        )


class CompletionRequest(GenerationRequest):
    not_supported: ClassVar[dict[str, tuple[Any, ...]]] = {
        **GenerationRequest.not_supported,
        "suffix": (None, ""),
    }

    prompt: (
        Text
        | Annotated[list[Text], Field(fail_fast=True)]
        | TokenIds
        | Annotated[list[TokenIds], Field(fail_fast=True)]
    )

    max_tokens: int | None = Field(default=None, ge=0)
    logprobs: Logprobs | None = None
    echo: bool = False

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


class ImageUrl(BaseModel):
    url: str


class ContentPart(BaseModel):
    type: Literal["text", "image_url"]
    text: Text | None = None
    image_url: ImageUrl | None = None

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

    def as_template_input(self, image_token: str | None = None, *, in_parts: bool = False) -> dict[str, Any]:
        """The message as chat templates expect it: its parts joined, or as a list for those that see images."""
        parts = self.content or []
        if isinstance(parts, str):
            parts = [ContentPart(type="text", text=parts)]
        content: str | list[dict[str, str]]
        if in_parts:
            content = [{"type": "image"} if p.text is None else {"type": "text", "text": p.text} for p in parts]
        else:
            content = "".join(f"{image_token}\n" if p.text is None else p.text for p in parts)
        return {**(self.model_extra or {}), "role": self.role, "content": content}


class ChatCompletionRequest(GenerationRequest):
    not_supported: ClassVar[dict[str, tuple[Any, ...]]] = {
        **GenerationRequest.not_supported,
        "tools": (None, []),
        "tool_choice": (None, "none", "auto"),
        "functions": (None, []),
        "continue_final_message": (False, None),
        "echo": (False, None),
    }

    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: Logprobs | None = None
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @model_validator(mode="after")
    def _check_top_logprobs(self) -> ChatCompletionRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError(f"top_logprobs is {self.top_logprobs} without logprobs: set logprobs to true")
        return self


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
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    prompt_logprobs: PromptLogprobs | None = None


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
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class ChatChunkChoice(BaseModel):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class ChatCompletionResponse(BaseModel):
    id: str = Field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    object: Literal["chat.completion"] = "chat.completion"
    created: int = Field(default_factory=lambda: int(time.time()))
    model: str
    choices: list[ChatChoice]
    usage: Usage | None = None
    prompt_logprobs: PromptLogprobs | None = None


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
