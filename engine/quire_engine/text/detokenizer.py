"""Text out of tokens as they come: whole characters only, and nothing that a stop string may take back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from quire_engine.sampling_params import SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tokens of the prompt that are decoded along, for tokenizers whose text depends on what stands before.
_PROMPT_TOKENS = 5
# A character has at most 4 bytes: where so many tokens make no whole one, they never will.
_PENDING_TOKENS = 8
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class IncrementalDetokenizer:
    """Turns one request's tokens into pieces of text.

    A window of token ids is decoded twice, with and without the new ones; what is longer is new:

        ids  [ prompt's tail | ... context ... | pending ... ]
                               ^ _context        ^ _read
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, prompt_token_ids: Sequence[int], params: SamplingParams
    ) -> None:
        self._decode = _decoder(tokenizer, skip_special_tokens=params.skip_special_tokens)
        self._params = params
        self._ids = list(prompt_token_ids[-_PROMPT_TOKENS:])
        self._context = 0
        self._read = len(self._ids)
        self._num_tokens = 0
        self._held = ""  # decoded, and perhaps the beginning of a stop string
        self._stop: str | None = None

    def update(
        self, new_token_ids: Sequence[int], finished: bool, *, ended_by_token: bool = False
    ) -> tuple[str, str | None]:
        """The text that `new_token_ids` add for good, and the stop string that ended it, if one did.

        With `finished` everything that was held back comes out. After a stop string nothing comes any more.
        `ended_by_token` says that the last token only ends the answer, and has no text but with
        `include_stop_str_in_output`.
        """
        if self._stop is not None:
            return "", self._stop
        tokens = list(new_token_ids)
        if ended_by_token and not self._params.include_stop_str_in_output:
            tokens.pop()
        out = ""
        for token in tokens:
            self._num_tokens += 1
            self._ids.append(token)
            out += self._release(self._decode_pending(last=False))
            if self._stop is not None:
                return out, self._stop
        if finished:
            out += self._release(self._decode_pending(last=True))
            if self._stop is None:
                out, self._held = out + self._held, ""
        return out, self._stop

    def _decode_pending(self, *, last: bool) -> str:
        """The text of the pending tokens, or none while their last character may be incomplete."""
        if self._read == len(self._ids):
            return ""
        known = self._decode(self._ids[self._context : self._read])
        text = self._decode(self._ids[self._context :])
        unfinished = text.endswith(_UNFINISHED) or len(text) <= len(known)
        if unfinished and not last and len(self._ids) - self._read < _PENDING_TOKENS:
            return ""
        del self._ids[: self._context]
        self._context = self._read - self._context
        self._read = len(self._ids)
        return text[len(known) :]

    def _release(self, text: str) -> str:
        """Pass `text` on, except what may belong to a stop string, up to a stop string."""
        stops = self._params.stop
        if not text or not stops or self._num_tokens <= self._params.min_tokens:
            return text
        self._held += text
        found = [(self._held.find(stop), stop) for stop in stops if stop in self._held]
        if found:
            start, self._stop = min(found, key=lambda f: (f[0], -len(f[1])))
            end = start + len(self._stop) if self._params.include_stop_str_in_output else start
            return self._held[:end]
        keep = max(_overlap(self._held, stop) for stop in stops)
        out, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return out


def _decoder(tokenizer: PreTrainedTokenizerBase, *, skip_special_tokens: bool) -> Callable[[list[int]], str]:
    """What decodes tokens, as they are. Tokenizers that decode as most do are asked without transformers between,
    which looks for five times as long at what it was given."""
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

    kind = type(tokenizer)
    if (
        isinstance(tokenizer, PreTrainedTokenizerFast)
        and kind.decode is PreTrainedTokenizerBase.decode
        and kind._decode is PreTrainedTokenizerFast._decode
    ):
        return partial(tokenizer.backend_tokenizer.decode, skip_special_tokens=skip_special_tokens)

    def decode(ids: list[int]) -> str:
        text = tokenizer.decode(ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    return decode


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that `stop` begins with, without being all of it."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
