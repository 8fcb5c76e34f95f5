"""Logprobs in the shapes of OpenAI's two APIs, and of vLLM's `prompt_logprobs`.

What there are many of is a plain dictionary: a long prompt has a hundred thousand, which as models take seconds.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from pydantic import BaseModel
from typing_extensions import TypedDict

from quire_engine.core.step import TokenLogprobs
from quire_engine.text.token_bytes import TokenBytes

LEAST = -9999.0  # OpenAI's for a token that cannot come: JSON has no infinity


class CompletionLogprobs(BaseModel):
    """One entry a token. The prompt's first token, in an echo, follows nothing and has none."""

    text_offset: list[int]  # of each token in the choice's text
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class TopLogprob(TypedDict):
    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    content: list[ChatTokenLogprob]
    refusal: None


class PromptLogprob(TypedDict):
    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[int, PromptLogprob] | None]


class CompletionLogprobsWriter:
    """Writes the logprobs of one choice, all at once or piece by piece."""

    def __init__(
        self, tokens: TokenBytes, *, with_special: bool, echoed: str | None = None, by_id: bool = False
    ) -> None:
        """`with_special` says that special tokens are in the text; `echoed` is the prompt that the text begins with;
        `by_id` has tokens named by their ids."""
        self._tokens, self._name = tokens, _id_as_text if by_id else tokens.text
        self._with_special = with_special
        self._echoed = echoed
        self._offset: int | None = None  # characters so far; None before any
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def write(self, entries: Sequence[TokenLogprobs], first: int | None = None) -> CompletionLogprobs:
        """The next tokens; before them, at the beginning of an echo, the prompt's `first`."""
        made = CompletionLogprobs(text_offset=[], token_logprobs=[], tokens=[], top_logprobs=[])
        if first is not None:
            self._write_token(made, first)
            made.token_logprobs.append(None)
            made.top_logprobs.append(None)
        for entry in entries:
            self._write_token(made, entry.token_id)
            made.token_logprobs.append(max(entry.logprob, LEAST))
            likeliest: dict[str, float] = {}
            for token, logprob in zip(entry.top_ids, entry.top_logprobs, strict=True):
                likeliest.setdefault(self._name(token), max(logprob, LEAST))
            likeliest.setdefault(made.tokens[-1], max(entry.logprob, LEAST))
            made.top_logprobs.append(likeliest)
        return made

    def _write_token(self, made: CompletionLogprobs, token: int) -> None:
        made.tokens.append(self._name(token))
        made.text_offset.append(max(0, self._offset or 0))
        if self._tokens.is_special(token) and not self._with_special:
            return
        text = self._decoder.decode(self._tokens.of(token))
        if self._offset is None:
            # Some tokenizers begin a text with a space that it does not have.
            invented = self._echoed is not None and text.startswith(" ") and not self._echoed.startswith(" ")
            self._offset = -1 if invented else 0
        self._offset += len(text)


def _id_as_text(token: int) -> str:
    return f"token_id:{token}"  # as vLLM writes it


def chat_logprobs(entries: Sequence[TokenLogprobs], tokens: TokenBytes, *, by_id: bool = False) -> ChatLogprobs:
    """With `by_id` tokens are named by their ids."""
    name = _id_as_text if by_id else tokens.text

    def shown(token: int, logprob: float) -> TopLogprob:
        return {"token": name(token), "logprob": max(logprob, LEAST), "bytes": [*tokens.of(token)]}

    content: list[ChatTokenLogprob] = [
        {
            **shown(entry.token_id, entry.logprob),
            "top_logprobs": [shown(t, lp) for t, lp in zip(entry.top_ids, entry.top_logprobs, strict=True)],
        }
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def prompt_logprobs(entries: Sequence[TokenLogprobs], tokens: TokenBytes) -> PromptLogprobs:
    """By token id: the prompt's token and the likeliest ones. None for the first token, which follows nothing."""
    made: PromptLogprobs = [None]
    for entry in entries:
        row: dict[int, PromptLogprob] = {}
        places = [(entry.token_id, entry.logprob, entry.rank)]
        places += zip(entry.top_ids, entry.top_logprobs, range(1, len(entry.top_ids) + 1), strict=True)
        for token, logprob, rank in places:
            row.setdefault(token, {"logprob": max(logprob, LEAST), "rank": rank, "decoded_token": tokens.text(token)})
        made.append(row)
    return made
