"""The requests of one beam search."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from quire_engine.core.beam_search import BeamSearch, Continuation, Path
from quire_engine.core.grammar import GrammarState, TooSlowError
from quire_engine.core.messages import BeamAnswer, FinishReason
from quire_engine.core.request import Request
from quire_engine.core.step import TokenLogprobs
from quire_engine.sampling_params import SamplingParams

# Processor time that a search may spend on its grammar, as so many answers may that each follow their own: a little at
# first, and so much for each beam of each round. Steps wait for it.
_FIRST_SECONDS = 1.0
_SECONDS_PER_BEAM = 0.01


@dataclass(eq=False, slots=True)
class BeamGroup:
    """A request for each beam. They start, take each step, give way and end together.

    Members stay and what they hold moves: the first continuation of a beam takes the place of its parent, and others
    the places of beams without any. At first there is only the request that came, which computes the prompt; it is
    always among the members, as long as any goes on.
    """

    search: BeamSearch
    members: list[Request]
    num_answers: int
    paths: list[Path | None] = field(default_factory=lambda: [None])  # the tokens of its answer so far, by member
    scores: list[float] = field(default_factory=lambda: [0.0])  # sums of logprobs, by member
    choices: dict[str, TokenLogprobs] = field(default_factory=dict)  # by request id, of those done with this round
    num_made: int = 1  # members, so far
    fault: str = ""  # why one could not go on, the latest
    seconds_left: float = _FIRST_SECONDS  # of processor time

    @staticmethod
    def lead(request: Request, ends: Mapping[int, int | None], longest: int, *, by_text: bool) -> None:
        """Make `request` the first of a group that searches up to `longest` tokens, the prompt's included.

        `ends` are the tokens that end an answer, with the reasons to give. With `by_text` each member has a grammar,
        which may end it too.
        """
        params, room = request.params, longest - request.num_prompt_tokens
        search = BeamSearch(
            width=params.num_sequences,
            min_tokens=params.min_tokens,
            max_tokens=room if params.max_tokens is None else min(params.max_tokens, room),
            ends=ends,
            length_penalty=params.length_penalty,
            early_stopping=params.early_stopping,
            by_text=by_text,
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

    def end_round(self, fork: Callable[[Request, Request], None], drop: Callable[[Request], None]) -> None:
        """Go on with the best continuations. `fork(parent, child)` has a child hold what its parent holds.

        Takes time for each member, however long the answers are: `fork` looks at what the two do not share. Where
        fewer go on than there are members, `drop` has one of the others hold nothing any more. Raises `TooSlowError`,
        with all members as they were, where their grammars have taken all the time that the search may spend on them.
        """
        self.seconds_left += _SECONDS_PER_BEAM * self.search.width
        choices = [self.choices[m.request_id] for m in self.members]
        self.choices = {}
        grammars: dict[tuple[int, int], GrammarState] = {}
        found = self.search.advance(
            self.paths, self.scores, choices, lambda beam, token: self._goes_on(beam, token, grammars)
        )
        if self.search.done:
            return
        taken = self._take_places(found, fork)
        for place, member in enumerate(self.members):
            if place not in taken:
                drop(member)
        going_on = [taken[place] for place in sorted(taken)]
        self.members = [self.members[place] for place in sorted(taken)]
        for member, one in zip(self.members, going_on, strict=True):
            member.token_ids.append(one.token_id)
            member.grammar = grammars.get((one.beam, one.token_id))
        length = self.members[0].num_output_tokens
        self.paths = [Path(one.token_id, self.paths[one.beam], length) for one in going_on]
        self.scores = [one.cumulative_logprob for one in going_on]

    def _goes_on(self, beam: int, token: int, grammars: dict[tuple[int, int], GrammarState]) -> bool | None:
        """Whether an answer goes on behind a token, and then in `grammars` how. None for one that may not come."""
        grammar = self.members[beam].grammar
        if grammar is None:
            return True
        if self.seconds_left < 0:
            raise TooSlowError("structured_outputs: the grammar takes too long to follow: write one less ambiguous")
        started = time.thread_time()
        try:
            state = grammar.fork()
            state.advance(token)
        except ValueError as error:
            self.fault = str(error)
            return None
        finally:
            self.seconds_left -= time.thread_time() - started
        grammars[beam, token] = state
        return not state.finished

    def _take_places(
        self, found: list[Continuation], fork: Callable[[Request, Request], None]
    ) -> dict[int, Continuation]:
        """Give each continuation a member, by place, that holds what its beam holds. The first member is among them."""
        taken = {continuation.beam: continuation for continuation in reversed(found)}
        others = [continuation for continuation in found if taken[continuation.beam] is not continuation]
        free = (place for place in itertools.count() if place not in taken)
        for continuation in others:
            place = next(free)
            if place == len(self.members):
                self.members.append(self._new_member())
            fork(self.members[continuation.beam], self.members[place])
            taken[place] = continuation
        if 0 not in taken:  # it is the request that came
            last = max(taken)
            fork(self.members[last], self.members[0])
            taken[0] = taken.pop(last)
        return taken

    def answers(self) -> list[BeamAnswer]:
        """The best of what the search found, the best first."""
        made = []
        for found in self.search.hypotheses[: self.num_answers]:
            reason: FinishReason = "stop" if found.ended else "length"
            stop = self.search.ends[found.path.token_id] if found.ended and not found.by_text else None
            made.append(BeamAnswer(found.path.token_ids(), found.cumulative_logprob, reason, stop, found.by_text))
        return made

    def _new_member(self) -> Request:
        first = self.members[0]
        self.num_made += 1
        return Request(
            member_id(first.request_id, self.num_made - 1),
            [],
            first.num_prompt_tokens,
            first.params,
            first.seed,
            order=first.order,
            cache_salt=first.cache_salt,
            images=first.images,
            adapted=first.adapted,
            adapter=first.adapter,
            num_cached_tokens=first.num_cached_tokens,
            group=self,
        )


def member_id(request_id: str, number: int) -> str:
    """A name that no request of a user has: theirs hold no NUL."""
    return f"{request_id}\0{number}"
