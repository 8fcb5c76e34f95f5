"""What the requests of all generating endpoints have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from quire_engine.sampling_params import MAX_BAD_WORDS, MAX_N, NOT_WITH_BEAMS, EarlyStopping, SamplingParams
from quire_engine.server.forms import StructuredRequest
from quire_engine.server.protocol.fields import CacheSalt, LogitBias, Logprobs, Text, TokenIds
from quire_engine.server.protocol.refused_fields import OF_GENERATION, RefusedFields, refuse
from quire_engine.structured_outputs import StructuredOutputsParams

MAX_STOP_TOKEN_IDS = 1024
MAX_ANSWERS = 1024  # of one request: its prompts, n or best_of times each
MAX_ALLOWED = 2**22  # entries of allowed_token_ids over all answers, each of which carries its own


class StreamOptions(BaseModel):
    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class GenerationRequest(StructuredRequest):
    """The fields that completions and chat completions share.

    Fields of other servers are let pass unread, but for those that would change the answer.
    """

    model_config = ConfigDict(extra="allow")
    refused_fields: ClassVar[RefusedFields] = OF_GENERATION

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
    truncation_side: Literal["left", "right"] | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None
    cache_salt: CacheSalt | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    user: str | None = None

    @model_validator(mode="after")
    def _refuse_what_is_not_built(self) -> GenerationRequest:
        refuse(self.model_extra or {}, self.refused_fields)
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
    def shows_token_ids(self) -> bool:
        """Whether logprobs name tokens by their ids."""
        return bool(self.return_tokens_as_token_ids)

    @property
    def streams_usage(self) -> bool:
        """Whether the stream ends with the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def streams_usage_so_far(self) -> bool:
        """Whether each chunk has the usage up to it."""
        asked = self.stream_options
        return self.streams_usage and asked is not None and bool(asked.continuous_usage_stats)

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
