"""What one turn of the loop runs: plain ints and lists, the same for every rank."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from quire_engine.sampling_params import SamplingParams


@dataclass(slots=True)
class NewSequence:
    """A request that the executor has not seen, or has forgotten since it was preempted."""

    request_id: str
    num_prompt_tokens: int
    params: SamplingParams
    seed: int


@dataclass(slots=True)
class ScheduledSequence:
    """The tokens to compute for one request, and the blocks that its table gained since it was last scheduled."""

    request_id: str
    token_ids: list[int]
    start: int  # position of the first of `token_ids`
    new_block_ids: list[int]
    samples: bool  # whether `token_ids` ends the known tokens, so that the next one is to be sampled

    @property
    def end(self) -> int:
        return self.start + len(self.token_ids)


@dataclass(slots=True)
class Step:
    """`removed` is to be forgotten first, then `new` is met, then `scheduled` runs as one batch.

    A block that one sequence fills may be read by another sequence of the same step: every layer has to write
    the keys and values of the whole batch before it attends.
    """

    removed: list[str] = field(default_factory=list)
    new: list[NewSequence] = field(default_factory=list)
    scheduled: list[ScheduledSequence] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(len(s.token_ids) for s in self.scheduled)


class Executor(Protocol):
    """Runs steps on a model."""

    def execute(self, step: Step) -> list[list[int]]:
        """The sampled tokens of each of `step.scheduled`, in its order: none where `samples` is false."""
        ...
