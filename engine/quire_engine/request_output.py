"""What `LLM.generate` returns."""

from __future__ import annotations

from dataclasses import dataclass, field

from quire_engine.core.messages import FinishReason
from quire_engine.lora.request import LoRARequest


@dataclass
class Logprob:
    """How likely a token was where it stands, in the model's own distribution."""

    logprob: float
    rank: int  # 1 for the most likely
    decoded_token: str


@dataclass
class CompletionOutput:
    """One of a prompt's `n` answers."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None  # the stop token or the stop string; None for EOS and for length
    # With `logprobs`, or where the best were chosen: the sum over the tokens.
    cumulative_logprob: float | None = None
    # With `logprobs`: for each token, itself and the likeliest ones, by token id.
    logprobs: list[dict[int, Logprob]] | None = None


@dataclass
class BeamSearchSequence:
    """An answer of `LLM.beam_search`. `tokens` and `text` begin with the prompt."""

    tokens: list[int]
    cum_logprob: float
    text: str
    finish_reason: FinishReason
    stop_reason: int | str | None = None


@dataclass
class BeamSearchOutput:
    """What `LLM.beam_search` found for one prompt, the best first."""

    sequences: list[BeamSearchSequence]


@dataclass
class RequestMetrics:
    """`arrival_time` is in seconds since the epoch, the others in seconds since it."""

    arrival_time: float
    first_token_time: float | None = None
    last_token_time: float | None = None
    finished_time: float | None = None


@dataclass
class RequestOutput:
    """A prompt and its answers. `prompt` is None where token ids were given."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics
    num_cached_tokens: int = 0
    # With `prompt_logprobs`: as `logprobs`, for each token of the prompt; None for the first, which follows nothing.
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    lora_request: LoRARequest | None = None  # the adapter that answered
