"""From what a client wrote to prompt tokens, and the limits that the context sets."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal

from quire_engine.server.errors import ApiError
from quire_engine.server.protocol.chat import ChatPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Above this many characters tokenizing takes milliseconds, and the event loop should not wait for it.
LONG_TEXT = 4096
Side = Literal["left", "right"]
# Arguments of apply_chat_template that chat_template_kwargs cannot set.
_SERVERS = frozenset(
    (
        *("chat_template", "tokenize", "add_generation_prompt", "continue_final_message"),
        *("conversation", "documents", "tools"),
    )
)


class PromptTooLongError(ApiError):
    """A prompt has more characters than the context could hold."""


class Prompts:
    """Tokenizes prompts and renders chats for one model."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_model_len: int,
        vocab_size: int,
        chat_template: str | None = None,
        *,
        longest_answer: int,
    ) -> None:
        """No answer has more than `longest_answer` tokens, whatever a request asks for."""
        self._tokenizer, self._max_model_len, self._chat_template = tokenizer, max_model_len, chat_template
        self._vocab_size, self._longest_answer = vocab_size, longest_answer

    def truncated(self, ids: list[int], keep: int | None, side: Side | None = None) -> list[int]:
        """`keep` tokens, of which those on the `side`, else on the left, are cut; -1 keeps as many as the context
        holds beside one more."""
        if keep is None:
            return ids
        if keep == 0:
            raise ApiError(
                400, "truncate_prompt_tokens is 0: it must be at least 1, or -1", param="truncate_prompt_tokens"
            )
        keep = self._max_model_len - 1 if keep == -1 else keep
        return ids[:keep] if side == "right" else ids[-keep:]

    def texts(self, prompt: str | list[str] | list[int] | list[list[int]], ids: list[list[int]]) -> list[str]:
        """The prompts of a completion request as texts, to be echoed. `ids` are their tokens."""
        given = [prompt] if isinstance(prompt, str) else prompt
        texts = [one for one in given if isinstance(one, str)]
        return (
            texts
            if len(texts) == len(ids)
            else [
                str(self._tokenizer.decode(one, skip_special_tokens=True, clean_up_tokenization_spaces=False))
                for one in ids
            ]
        )

    async def from_completion(
        self, prompt: str | list[str] | list[int] | list[list[int]], field: str = "prompt", *, special: bool = True
    ) -> list[list[int]]:
        """The token ids of each prompt in a request's `field`. Raises `ApiError` on an empty or foreign one.

        `special` has the tokenizer put around texts what it puts there.
        """
        if isinstance(prompt, str):
            return [await self._encode(prompt, special=special, field=field)]
        if not prompt:
            raise ApiError(400, f"{field} is empty: send a string, or a list of strings or token ids", param=field)
        if isinstance(prompt[0], int):
            return [self._checked([p for p in prompt if isinstance(p, int)], field)]
        ids = []
        for one in prompt:
            if isinstance(one, str):
                ids.append(await self._encode(one, special=special, field=field))
            elif isinstance(one, list):
                ids.append(self._checked(one, field))
        return ids

    async def from_chat(self, chat: ChatPrompt, messages: list[dict[str, Any]]) -> list[int]:
        """The token ids of a rendered chat. Raises `ApiError` when the template refuses the messages.

        `messages` are the chat's, as the template takes them.
        """
        if self._chat_template is None and not getattr(self._tokenizer, "chat_template", None):
            raise ApiError(
                400, "this model has no chat template: use /v1/completions, or start the server with --chat-template"
            )
        taken = _SERVERS & chat.template_kwargs.keys()
        if taken:
            raise ApiError(
                400,
                f"chat_template_kwargs sets {min(taken)}, which is the server's or a field of its own: leave it out",
                param="chat_template_kwargs",
            )
        try:
            text = await asyncio.to_thread(
                self._tokenizer.apply_chat_template,
                messages,
                tools=[tool.as_template_input() for tool in chat.tools] if chat.tools else None,
                documents=chat.documents,
                chat_template=self._chat_template,
                tokenize=False,
                add_generation_prompt=chat.begins_an_answer,
                continue_final_message=chat.continue_final_message,
                **chat.template_kwargs,
            )
            str(text).encode()  # kwargs may smuggle in what no tokenizer takes
        except Exception as error:
            raise ApiError(400, f"the chat template refused the messages: {error}", param="messages") from error
        return await self._encode(str(text), special=chat.add_special_tokens)

    async def tokens_of(self, text: str, *, special: bool) -> list[int]:
        """The token ids of a text that may be empty. Raises `ApiError` for one that no prompt can hold."""
        return await self._encode(text, special=special, may_be_empty=True)

    def max_tokens(self, prompt_token_ids: list[int], asked: int | None, field: str) -> int:
        """How many tokens may be generated. Raises `ApiError` where prompt or wish alone pass the context.

        A prompt that fits with a wish that would run past the context is answered up to the context.
        """
        length, limit = len(prompt_token_ids), self._max_model_len
        if length >= limit:
            raise ApiError(
                400,
                f"{self._limit()}, prompt and answer together. However, the prompt has {length} tokens: shorten it",
                param="messages" if field == "max_completion_tokens" else "prompt",
            )
        if asked is not None and asked > limit:
            raise ApiError(400, f"{self._limit()}. However, {field} is {asked}: ask for fewer", param=field)
        room = min(limit - length, self._longest_answer)
        return room if asked is None else min(asked, room)

    def leaves_room(self, prompt_token_ids: list[int], answer: int) -> bool:
        """Whether the context holds the prompt and an answer of `answer` tokens."""
        return len(prompt_token_ids) + min(answer, self._longest_answer) <= self._max_model_len

    @property
    def usual_answer(self) -> int:
        """The tokens of the context that a chat which is shortened leaves to an answer of no length that is known."""
        return min(1024, self._max_model_len // 4)

    def _limit(self) -> str:
        """Clients look for these words of OpenAI's, to shorten their prompts."""
        return f"This model's maximum context length is {self._max_model_len} tokens"

    def check_ids(self, ids: list[int], field: str) -> None:
        """Raise `ApiError` for a token id that the model does not have."""
        if ids and max(ids) >= self._vocab_size:
            raise ApiError(
                400, f"{field} holds token id {max(ids)}: this model's ids end at {self._vocab_size - 1}", param=field
            )

    def _checked(self, ids: list[int], field: str) -> list[int]:
        if not ids:
            raise ApiError(400, f"{field} holds an empty list: each prompt needs at least one token", param=field)
        self.check_ids(ids, field)
        return ids

    async def _encode(
        self, text: str, *, special: bool, field: str = "prompt", may_be_empty: bool = False
    ) -> list[int]:
        if len(text) > self._max_model_len * 128:  # no tokenizer packs more into a token: do not even try
            raise PromptTooLongError(
                400, f"{self._limit()}. However, the prompt has {len(text)} characters: shorten it", param=field
            )
        if len(text) > LONG_TEXT:
            ids = await asyncio.to_thread(self._tokenizer.encode, text, add_special_tokens=special)
        else:
            ids = self._tokenizer.encode(text, add_special_tokens=special)
        if not ids and not may_be_empty:
            raise ApiError(400, "the prompt is empty: write at least one character", param=field)
        return list(ids)
