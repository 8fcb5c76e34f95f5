"""The requests of one beam search."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from quire_engine.core.beam_search import BeamSearch, Path
from quire_engine.core.messages import BeamAnswer
from quire_engine.core.request import Request
from quire_engine.core.step import TokenLogprobs
from quire_engine.sampling_params import SamplingParams


@dataclass(eq=False, slots=True)
class BeamGroup:
    """A request for each beam. They start, take each step, give way and end together.

    Members stay and what they hold moves: the first continuation of a beam takes the place of its parent, and others
    the places of beams without any. At first there is only the request that came, which computes the prompt.
    """

    search: BeamSearch
    members: list[Request]
    num_answers: int
    paths: list[Path | None] = field(default_factory=lambda: [None])  # the tokens of its answer so far, by member
    scores: list[float] = field(default_factory=lambda: [0.0])  # sums of logprobs, by member
    choices: dict[str, TokenLogprobs] = field(default_factory=dict)  # by request id, of those done with this round

    @staticmethod
    def lead(request: Request, ends: Mapping[int, int | None], longest: int) -> None:
        """Make `request` the first of a group that searches up to `longest` tokens, the prompt's included.

        `ends` are the tokens that end an answer, with the reasons to give.
        """
        params, room = request.params, longest - request.num_prompt_tokens
        search = BeamSearch(
            width=params.num_sequences,
            min_tokens=params.min_tokens,
            max_tokens=room if params.max_tokens is None else min(params.max_tokens, room),
            ends=ends,
            length_penalty=params.length_penalty,
            early_stopping=params.early_stopping,
        )
        request.group = BeamGroup(search, [request], params.n)
        # To the executor a beam is a request that asks for logprobs; what it samples is of no use.
        request.params = SamplingParams(temperature=0.0, logprobs=search.num_choices)

    @property
    def is_complete(self) -> bool:
        """Whether each member has computed its last token, so that the round can end."""
        return len(self.choices) == len(self.members)

    def begin_round_again(self) -> None:
        """Forget what members have to go on with: when they are back they compute their last tokens again."""
        for member in self.members:
            if member.request_id in self.choices:
                member.num_computed_tokens -= 1
        self.choices = {}

    def end_round(self, fork: Callable[[Request, Request], None]) -> None:
        """Go on with the best continuations. `fork(parent, child)` has a child hold what its parent holds.

        Takes time for each member, however long the answers are: `fork` looks at what the two do not share.
        """
        choices = [self.choices[m.request_id] for m in self.members]
        self.choices = {}
        found = self.search.advance(self.paths, self.scores, choices)
        if self.search.done:
            return
        taken = {continuation.beam: continuation for continuation in reversed(found)}
        others = [continuation for continuation in found if taken[continuation.beam] is not continuation]
        free = (i for i in range(len(found)) if i not in taken)
        for place, continuation in zip(free, others, strict=True):
            if place == len(self.members):
                self.members.append(self._new_member(place))
            fork(self.members[continuation.beam], self.members[place])
            taken[place] = continuation
        for place, continuation in taken.items():
            self.members[place].token_ids.append(continuation.token_id)
        going_on = [taken[place] for place in range(len(found))]
        length = self.members[0].num_output_tokens
        self.paths = [Path(one.token_id, self.paths[one.beam], length) for one in going_on]
        self.scores = [one.cumulative_logprob for one in going_on]

    def answers(self) -> list[BeamAnswer]:
        """The best of what the search found, the best first."""
        ends = self.search.ends
        return [
            BeamAnswer(h.path.token_ids(), h.cumulative_logprob, "stop", ends[h.path.token_id])
            if h.ended
            else BeamAnswer(h.path.token_ids(), h.cumulative_logprob, "length")
            for h in self.search.hypotheses[: self.num_answers]
        ]

    def _new_member(self, place: int) -> Request:
        first = self.members[0]
        return Request(
            member_id(first.request_id, place),
            [],
            first.num_prompt_tokens,
            first.params,
            first.seed,
            order=first.order,
            cache_salt=first.cache_salt,
            images=first.images,
            adapted=first.adapted,
            num_cached_tokens=first.num_cached_tokens,
            group=self,
        )


def member_id(request_id: str, place: int) -> str:
    """A name that no request of a user has: theirs hold no NUL."""
    return f"{request_id}\0{place}"
