"""What goes into the engine core and what comes out of it. Plain data, no torch: it crosses the socket."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import msgspec

from quire_engine.core.images import TEXT_ALONE, ImageTokens, PromptImage
from quire_engine.core.pooling import Pooling, PoolingParams
from quire_engine.core.step import TokenLogprobs
from quire_engine.sampling_params import SamplingParams

FinishReason = Literal["stop", "length", "abort", "error"]
# Whose matter an error is: the request has to change; its adapter is not there; it may come again as it is; the engine
# failed at it.
ErrorKind = Literal["invalid", "missing", "busy", "fault"]


@dataclass
class EngineRequest:
    """One sequence to generate, or one beam search. Else `n > 1` is expanded by the caller into that many requests.

    With `pooling` nothing is generated, and `params` have no effect: the prompt's vector is the answer.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    arrival_time: float = 0.0  # time.monotonic() of whoever accepted it; the same clock on one machine
    priority: int = 0  # lower runs first
    cache_salt: str | None = None
    pooling: PoolingParams | None = None
    # A request that was sent before and is still there, of whose prompt, images and salt this is another answer: it
    # has none of its own. Where the two meet as the prompt ends, they share all of the prompt's pages.
    sibling_id: str | None = None
    images: tuple[PromptImage, ...] = ()  # in the order of their tokens, which are in the prompt
    adapter: str | None = None  # the name of one that is loaded

    def another(self, request_id: str, params: SamplingParams) -> EngineRequest:
        """Another answer to its prompt, to be sent behind it."""
        return EngineRequest(
            request_id, [], params, self.arrival_time, self.priority, pooling=self.pooling, sibling_id=self.request_id
        )


@dataclass
class BeamAnswer:
    """One of the answers of a beam search."""

    token_ids: list[int]
    cumulative_logprob: float
    finish_reason: FinishReason
    stop_reason: int | None = None
    ended_by_text: bool = False  # with finish_reason "stop": by a stop string, or where nothing may follow

    @property
    def ended_by_token(self) -> bool:
        """Whether the last token only ends the answer, and is no part of it."""
        return self.finish_reason == "stop" and not self.ended_by_text


class EngineOutput(msgspec.Struct, omit_defaults=True, gc=False):
    """What one step added to one request. A request's last output has a `finish_reason`.

    A beam search has one output, with its `n` answers, the best first.
    """

    request_id: str
    new_token_ids: list[int]
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None  # the stop token id that ended it; None for EOS
    num_cached_tokens: int = 0  # prompt tokens that came from the prefix cache
    started_at: float | None = None  # with its first output: when it first ran, by the clock of `arrival_time`
    error: str | None = None  # what was wrong, with finish_reason "error"
    error_kind: ErrorKind = "invalid"
    ended_by_grammar: bool = False  # with finish_reason "stop": nothing could follow the last token
    logprobs: list[TokenLogprobs] | None = None  # one for each of `new_token_ids`, with `params.logprobs`
    # Of the next positions of the prompt, from the second on, with `params.prompt_logprobs`. They may come in several
    # parts, and before the first token.
    prompt_logprobs: list[TokenLogprobs] | None = None
    beams: list[BeamAnswer] | None = None
    embedding: list[float] | None = None  # the prompt's vector, with `EngineRequest.pooling`; it comes alone and last

    @property
    def ended_by_token(self) -> bool:
        """Whether the last token only ends the answer, and is no part of it."""
        return self.finish_reason == "stop" and not self.ended_by_grammar


@dataclass
class EngineStats:
    """A snapshot after a step. Counters only grow; gauges are as of now."""

    num_running: int = 0
    num_waiting: int = 0
    num_deferred: int = 0  # of those that wait: for their grammar or their images, not for room
    num_swapped: int = 0  # of those that wait: their pages are in host memory
    kv_cache_usage: float = 0.0  # 0 to 1, of the pages that requests hold
    swap_usage: float = 0.0  # 0 to 1, of the pages of --swap-space
    num_preemptions: int = 0
    num_swaps: int = 0  # of these, those whose pages went to host memory
    prefix_cache_queries: int = 0  # tokens looked up
    prefix_cache_hits: int = 0  # tokens found
    num_steps: int = 0
    num_scheduled_tokens: int = 0  # in this step
    running_adapters: list[str] = field(default_factory=list)  # names of those that requests run with
    waiting_adapters: list[str] = field(default_factory=list)  # and of those that requests wait for


@dataclass(frozen=True)
class Vocabulary:
    """A model's tokens, from the process that has loaded its tokenizer: where torch is, transformers takes seconds."""

    tokenizer: str  # the tokenizers library's JSON, with the tokens that were added
    size: int
    eos_token_id: int


@dataclass
class EngineInfo:
    """What the engine found out while starting; the server needs it to validate and to report."""

    model: str  # the directory that it was loaded from
    max_model_len: int
    vocab_size: int
    eos_token_ids: list[int]
    num_blocks: int
    num_swap_blocks: int  # in host memory
    block_size: int
    dtype: str
    device: str
    sampling_defaults: dict[str, int | float] = field(default_factory=dict)  # of requests, by names of `SamplingParams`
    pooling: Pooling | None = None  # of a model that makes embeddings, and nothing else
    images: ImageTokens | None = None  # of a model that takes images
    no_images: str = TEXT_ALONE  # why, where it takes none
    startup_seconds: dict[str, float] = field(default_factory=dict)  # by phase
