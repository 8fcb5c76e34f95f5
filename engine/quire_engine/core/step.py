"""What one turn of the loop runs: plain ints and lists, the same for every rank."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from quire_engine.core.images import PreparedImage, PromptImage
from quire_engine.core.pooling import PoolingParams
from quire_engine.sampling_params import SamplingParams

# In place of a token that cannot be told: the model's logits are NaN or infinite.
NO_TOKEN = -1

# In place of a token that is still to be sampled by a step under way: the executor takes what the sequence's last step
# sampled. It stands alone, as what a sequence that decodes computes next.
LATEST = -2


@dataclass(slots=True)
class NewSequence:
    """A request that the executor has not seen, or has forgotten since it was preempted."""

    request_id: str
    num_prompt_tokens: int
    params: SamplingParams
    seed: int
    token_ids: list[int] = field(default_factory=list)  # all that are known, where `params.looks_back`
    prompt_logprobs_from: int = 1  # the first position whose prompt logprobs, if asked for, are still wanted
    rotated_for: int = 0  # the length that its keys are rotated for, where that matters: see `RotationByLength`
    ranks_allowed: bool = False  # its likeliest tokens are wanted among those that it may have, and not among all
    pooling: PoolingParams | None = None  # its hidden states make one vector, once the prompt is through
    adapter: int = 0  # the number of the one that it is computed with
    images: tuple[PromptImage, ...] = ()  # in the order of their tokens, without their files
    prepared: dict[bytes, PreparedImage] = field(default_factory=dict)  # by digest, those that are to be computed


@dataclass(slots=True)
class ScheduledSequence:
    """The tokens to compute for one request, and how its table of blocks has changed since it was last scheduled.

    One that begins as a copy of another has no tokens: it samples from the last hidden state of that one.
    """

    request_id: str
    token_ids: list[int]
    start: int  # position of the first of `token_ids`
    new_block_ids: list[int]
    samples: bool  # whether `token_ids` ends the known tokens, so that the next one is to be sampled
    allowed: bytes | None = None  # the tokens that may be sampled, one bit each as in `GrammarState`; None for all
    pools: bool = False  # whether `token_ids` ends a prompt whose vector is wanted: then nothing is sampled
    samples_after: str | None = None  # the sequence of this step whose last token it goes on from
    first_new_block: int = 0  # the place in the table that `new_block_ids` begin at; some may be there already

    @property
    def end(self) -> int:
        return self.start + len(self.token_ids)


@dataclass(slots=True)
class Step:
    """`removed` is to be forgotten first, then `new` is met, then pages are copied, then `scheduled` runs as one batch.

    All of `swap_out` comes before `cleared`, that before `swap_in`, and that before `copies`: a block may be left by
    one sequence, given to another, and copied for a third that writes to it.
    A block that one sequence fills may be read by another sequence of the same step: every layer has to write
    the keys and values of the whole batch before it attends.
    """

    removed: list[str] = field(default_factory=list)
    new: list[NewSequence] = field(default_factory=list)
    swap_out: list[tuple[int, int]] = field(default_factory=list)  # (block, host page)
    cleared: list[int] = field(default_factory=list)  # blocks that become zeros: attention may not meet NaN in padding
    swap_in: list[tuple[int, int]] = field(default_factory=list)  # (host page, block)
    copies: list[tuple[int, int]] = field(default_factory=list)  # (block, block that becomes like it)
    scheduled: list[ScheduledSequence] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum([len(s.token_ids) for s in self.scheduled])

    def without_masks(self) -> Step:
        """The step for ranks that do not sample: what a grammar allows is a bit for each token of the vocabulary."""
        if all(s.allowed is None for s in self.scheduled):
            return self
        return replace(self, scheduled=[s if s.allowed is None else replace(s, allowed=None) for s in self.scheduled])


@dataclass(slots=True)
class TokenLogprobs:
    """How likely a token was where it stands, and the most likely ones there.

    Logarithms of the model's own distribution, before temperature, penalties, biases and masks.
    """

    token_id: int
    logprob: float
    rank: int  # 1 + the number of tokens that were more likely
    top_ids: list[int] = field(default_factory=list)  # as many as were asked for, the likeliest first
    top_logprobs: list[float] = field(default_factory=list)


@dataclass(slots=True)
class StepResult:
    """What a step made, as plain values: it crosses processes."""

    # Sampled by each of `step.scheduled`, in its order: none where `samples` is false. One may be `NO_TOKEN`.
    token_ids: list[list[int]]
    # By request, one entry a sampled token; for requests with `params.logprobs` alone.
    logprobs: dict[str, list[TokenLogprobs]] = field(default_factory=dict)
    # By request, of the prompt's positions that follow the step's tokens, in order and without a gap from
    # `prompt_logprobs_from` on; for requests with `params.prompt_logprobs` alone.
    prompt_logprobs: dict[str, list[TokenLogprobs]] = field(default_factory=dict)
    embeddings: dict[str, list[float]] = field(default_factory=dict)  # by request, where `pools` is true


class Executor(Protocol):
    """Runs steps on a model."""

    def execute(self, step: Step) -> StepResult: ...


@runtime_checkable
class Recording(Protocol):
    """An executor whose steps of decodes alone can be recorded and replayed."""

    def record_decodes(self, room: int) -> int:
        """Record them, in `room` bytes of the device. Returns how many there are, 0 where they cannot be."""
        ...

    def forget_recordings(self) -> None:
        """To be called before ranks part: NCCL does not end while a CUDA graph holds one of its sums."""
        ...


@runtime_checkable
class Closing(Protocol):
    """An executor that has processes to end."""

    def close(self) -> None: ...
