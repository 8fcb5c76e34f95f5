"""Whole texts and token counts out of pieces."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from quire_engine.core.step import TokenLogprobs
from quire_engine.server.generation import Piece
from quire_engine.server.protocol.usage import CompletionTokensDetails, PromptTokensDetails, Usage


@dataclass
class TokenCount:
    """The tokens of one API request, whose prompts have `num_answers` sequences each, and why its answers ended."""

    prompt_tokens: int
    num_answers: int
    completion_tokens: int = 0
    finish_reasons: dict[int, str] = field(default_factory=dict)  # by the answer's index
    _cached: dict[int, int] = field(default_factory=dict)

    def add(self, piece: Piece) -> None:
        self.completion_tokens += len(piece.token_ids)
        self._cached.setdefault(piece.index, piece.num_cached_tokens)
        self.note_end(piece.index, piece.finish_reason)

    def note_end(self, index: int, reason: str | None) -> None:
        """An answer has ended, where there is a reason: the one that its reader is given."""
        if reason is not None:
            self.finish_reasons[index] = reason

    def as_usage(self, num_reasoning_tokens: int | None = None) -> Usage:
        """The usage, of which so many tokens were reasoning; None where nothing looks for it."""
        # The other children of a prompt share its pages: counting each would exceed it.
        cached = sum(count for index, count in self._cached.items() if index % self.num_answers == 0)
        made = Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            total_tokens=self.prompt_tokens + self.completion_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=min(cached, self.prompt_tokens)),
        )
        if num_reasoning_tokens is not None:
            made.completion_tokens_details = CompletionTokensDetails(reasoning_tokens=num_reasoning_tokens)
        return made


@dataclass
class WholeText:
    """One sequence from beginning to end."""

    text: str = ""
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    parts: list[tuple[str, int]] = field(default_factory=list)  # of the text, with the number of tokens in each

    def add(self, piece: Piece) -> None:
        self.parts.append((piece.text, len(piece.token_ids)))
        self.token_ids += piece.token_ids
        self.logprobs += piece.logprobs or []
        if piece.finish_reason is not None:
            self.text, self.finish_reason, self.stop_reason = (
                "".join(text for text, _ in self.parts),
                piece.finish_reason,
                piece.stop_reason,
            )


@dataclass
class Answers:
    """All that was made for one prompt: its own logprobs, where asked for, and `n` texts."""

    texts: list[WholeText] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)


async def collect(pieces: AsyncIterator[Piece], count: TokenCount, *, num_answers: int, n: int) -> list[Answers]:
    """Join the pieces of each sequence, by prompt. Of more than `n` sequences keep those with the highest sum of
    logprobs, the best one first."""
    texts: dict[int, WholeText] = {}
    answers: dict[int, Answers] = {}
    async for piece in pieces:
        count.add(piece)
        texts.setdefault(piece.index, WholeText()).add(piece)
        of_prompt = answers.setdefault(piece.index // num_answers, Answers())
        of_prompt.prompt_logprobs += piece.prompt_logprobs or []
    for index in sorted(texts):
        answers[index // num_answers].texts.append(texts[index])
    for made in answers.values():
        if len(made.texts) > n:
            made.texts = sorted(made.texts, key=lambda text: -sum(e.logprob for e in text.logprobs))[:n]
    kept = [answers[prompt] for prompt in sorted(answers)]
    count.finish_reasons.clear()
    for index, text in enumerate(text for of_prompt in kept for text in of_prompt.texts):
        count.note_end(index, text.finish_reason)
    return kept
