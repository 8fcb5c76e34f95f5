"""Which rows of a step give the logprobs of prompt tokens that somebody asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quire_engine.core.step import NewSequence, ScheduledSequence


@dataclass(slots=True)
class PromptRows:
    """Rows `first` .. `first + len(token_ids)` of the batch, whose hidden states tell how likely `token_ids` were."""

    request_id: str
    first: int
    token_ids: list[int]
    count: int  # of the likeliest tokens, to be told beside


class PromptLogprobs:
    """The requests that want them and are not through with their prompt."""

    def __init__(self) -> None:
        self._waiting: dict[str, NewSequence] = {}

    def add(self, sequence: NewSequence) -> None:
        if sequence.params.prompt_logprobs is not None:
            self._waiting[sequence.request_id] = sequence

    def remove(self, request_id: str) -> None:
        self._waiting.pop(request_id, None)

    def of(self, firsts: Sequence[tuple[ScheduledSequence, int]]) -> list[PromptRows]:
        """What a step tells of prompts, whose sequences begin at these rows of the batch."""
        if not self._waiting:
            return []
        found = [self._rows(scheduled, first) for scheduled, first in firsts]
        return [rows for rows in found if rows is not None]

    def _rows(self, scheduled: ScheduledSequence, first: int) -> PromptRows | None:
        """What `scheduled`, whose tokens begin at row `first`, tells of its prompt.

        A token's hidden state tells of the next token, which another step may compute.
        """
        sequence = self._waiting.get(scheduled.request_id)
        if sequence is None:
            return None
        begin = max(scheduled.start + 1, sequence.prompt_logprobs_from)
        end = min(scheduled.end + 1, sequence.num_prompt_tokens)
        if scheduled.end >= sequence.num_prompt_tokens - 1:
            del self._waiting[scheduled.request_id]
        if begin >= end:
            return None
        count = sequence.params.prompt_logprobs or 0
        return PromptRows(
            scheduled.request_id, first + begin - scheduled.start - 1, sequence.token_ids[begin:end], count
        )
