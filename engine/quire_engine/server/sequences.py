"""Whole texts and token counts out of pieces."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from quire_engine.sampling_params import SamplingParams
from quire_engine.server.errors import ApiError
from quire_engine.server.generation import Piece
from quire_engine.server.protocol import GenerationRequest, PromptTokensDetails, Usage


@dataclass
class TokenCount:
    """The tokens of one API request."""

    prompt_tokens: int
    completion_tokens: int = 0
    _cached: dict[int, int] = field(default_factory=dict)

    def add(self, piece: Piece) -> None:
        self.completion_tokens += len(piece.token_ids)
        self._cached.setdefault(piece.index, piece.num_cached_tokens)

    def as_usage(self) -> Usage:
        cached = self._cached.get(0, 0)  # children of one prompt share its pages: counting each would exceed it
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            total_tokens=self.prompt_tokens + self.completion_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=min(cached, self.prompt_tokens)),
        )


@dataclass
class WholeText:
    """One sequence from beginning to end."""

    text: str = ""
    finish_reason: str | None = None
    stop_reason: int | str | None = None


async def collect(pieces: AsyncIterator[Piece], count: TokenCount) -> list[WholeText]:
    """Join the pieces of each sequence, in the order of their indices."""
    parts: dict[int, list[str]] = {}
    ends: dict[int, Piece] = {}
    async for piece in pieces:
        count.add(piece)
        parts.setdefault(piece.index, []).append(piece.text)
        if piece.finish_reason is not None:
            ends[piece.index] = piece
    return [
        WholeText("".join(parts[index]), ends[index].finish_reason, ends[index].stop_reason) for index in sorted(parts)
    ]


def checked_params(request: GenerationRequest, max_tokens: int) -> SamplingParams:
    """The request's sampling parameters. Raises `ApiError` that names the field which is out of range."""
    try:
        return request.sampling_params(max_tokens)
    except ValueError as error:
        raise ApiError(400, str(error), param=str(error).split(" ", 1)[0]) from error
