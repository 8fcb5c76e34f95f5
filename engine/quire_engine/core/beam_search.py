"""Which continuations a beam search goes on with, and which of those that ended it keeps. Numbers in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from quire_engine.core.step import TokenLogprobs
from quire_engine.sampling_params import MAX_LOGPROBS, EarlyStopping

# Of a beam and the token to follow it, whether the answer goes on behind that: its text may end it. None for a token
# that may not come.
GoesOn = Callable[[int, int], bool | None]


@dataclass(frozen=True, slots=True, eq=False)
class Path:
    """The tokens that an answer has so far, without the prompt. Those that go on from it share it, and copy nothing."""

    token_id: int  # the last one
    before: Path | None
    length: int

    def token_ids(self) -> list[int]:
        tokens: list[int] = []
        path: Path | None = self
        while path is not None:
            tokens.append(path.token_id)
            path = path.before
        return tokens[::-1]


@dataclass(slots=True)
class Hypothesis:
    """An answer that a search found."""

    path: Path  # with the token that ended it
    cumulative_logprob: float
    score: float  # cumulative_logprob / path.length ** length_penalty
    ended: bool  # and not cut at its greatest length
    by_text: bool  # ended by what it says, and not by a token for it


@dataclass(slots=True)
class Continuation:
    """A running beam and the token that it may go on with."""

    beam: int
    token_id: int
    cumulative_logprob: float


class BeamSearch:
    """The `width` most likely continuations of a prompt, a token at a time.

    Decides as `transformers` does in `generate(num_beams=width, do_sample=False)`. Of all beams' continuations, those
    that end, by a token or by their text, and are among the `width` best become hypotheses, of which the `width` with
    the best scores stay; the `width` best that do not end go on. The search is done at `max_tokens`, or once there are
    `width` hypotheses and

    - `early_stopping` is true; or
    - it is false, and the best beam's score, at its present length, is no better than the worst hypothesis'; or
    - it is "never", and not even at the length that would suit it best: at `max_tokens` where `length_penalty` > 0.
    """

    def __init__(
        self,
        *,
        width: int,
        min_tokens: int,
        max_tokens: int,
        ends: Mapping[int, int | None],
        length_penalty: float,
        early_stopping: EarlyStopping,
        by_text: bool = False,
    ) -> None:
        """`by_text` says that answers may end by their text, so that nobody can say how many tokens end one."""
        self.width = width
        self._num_spare = width if by_text else 0
        self.ends = ends  # tokens that end an answer
        self.hypotheses: list[Hypothesis] = []  # the best first
        self.done = False
        self._min_tokens, self._max_tokens = min_tokens, max_tokens
        self._length_penalty, self._early_stopping = length_penalty, early_stopping

    @property
    def num_choices(self) -> int:
        """The likeliest tokens that each beam has to name: `width` that go on, whichever ones end by a token."""
        return min(self.width + len(self.ends) + self._num_spare, MAX_LOGPROBS)

    def advance(
        self,
        beams: Sequence[Path | None],
        scores: Sequence[float],
        choices: Sequence[TokenLogprobs],
        goes_on: GoesOn = lambda beam, token: True,
    ) -> list[Continuation]:
        """The beams' continuations to go on with, the best first; of no use when the search is `done`.

        `beams` are their tokens, None before the first, and `scores` the sums of their logprobs; `choices` name the
        likeliest tokens that follow each. Beams are of one length. There may be fewer continuations than beams.
        `goes_on` is asked the best first, of no more than can matter: most of what costs time is found out there.
        """
        length = 1 if beams[0] is None else beams[0].length + 1
        may_end = length > self._min_tokens
        candidates = [
            Continuation(beam, token, score + logprob)
            for beam, (score, choice) in enumerate(zip(scores, choices, strict=True))
            for token, logprob in zip(choice.top_ids, choice.top_logprobs, strict=True)
            if logprob > -math.inf and (may_end or token not in self.ends)
        ]
        candidates.sort(key=lambda c: -c.cumulative_logprob)
        at_limit = length == self._max_tokens
        going_on: list[Continuation] = []
        rank = 0
        for found in candidates:
            if rank >= self.width and (at_limit or len(going_on) == self.width):
                break
            if rank >= self.width and not going_on and not self._can_improve(found.cumulative_logprob, length):
                break
            by_token = found.token_id in self.ends
            lasts = not by_token and goes_on(found.beam, found.token_id)
            if lasts is None:
                continue
            if rank < self.width and (at_limit or not lasts):
                path = Path(found.token_id, beams[found.beam], length)
                score = self._score(found.cumulative_logprob, length)
                by_text = not lasts and not by_token
                self.hypotheses.append(Hypothesis(path, found.cumulative_logprob, score, not lasts, by_text))
            if lasts and len(going_on) < self.width:
                going_on.append(found)
            rank += 1
            if rank == self.width:
                self._keep_the_best()
        self._keep_the_best()
        self.done = at_limit or not going_on or not self._can_improve(going_on[0].cumulative_logprob, length)
        return going_on

    def _keep_the_best(self) -> None:
        self.hypotheses.sort(key=lambda h: -h.score)
        del self.hypotheses[self.width :]

    def _can_improve(self, best: float, length: int) -> bool:
        """Whether the best running beam, of `length` tokens, may still become one of the best hypotheses."""
        if len(self.hypotheses) < self.width:
            return True
        if self._early_stopping is True:
            return False
        hopeful = self._early_stopping == "never" and self._length_penalty > 0
        return self._score(best, self._max_tokens if hopeful else length) > self.hypotheses[-1].score

    def _score(self, cumulative_logprob: float, length: int) -> float:
        divisor: float = length**self._length_penalty
        return cumulative_logprob / divisor
