"""POST /tokenize and /detokenize."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from quire_engine.server.chat_prompts import ChatPrompts
from quire_engine.server.prompts import Prompts
from quire_engine.server.protocol.tokenization import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeChatRequest,
    TokenizeResponse,
    TokenizeTextRequest,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Tokenization:
    """Tells what tokens a prompt becomes, and what text tokens are."""

    def __init__(
        self,
        prompts: Prompts,
        chat_prompts: ChatPrompts,
        tokenizer: PreTrainedTokenizerBase,
        max_model_len: int,
    ) -> None:
        self._prompts, self._chat_prompts = prompts, chat_prompts
        self._tokenizer, self._max_model_len = tokenizer, max_model_len

    async def tokenize(self, request: TokenizeTextRequest | TokenizeChatRequest) -> TokenizeResponse:
        """The tokens that a completion or a chat would be computed from, however many. Raises `ApiError`."""
        if isinstance(request, TokenizeTextRequest):
            ids = await self._prompts.tokens_of(request.prompt, special=request.add_special_tokens)
        else:
            ids, _ = await self._chat_prompts.of(request)
        answer = TokenizeResponse(count=len(ids), max_model_len=self._max_model_len, tokens=ids)
        if request.return_token_strs:
            answer.token_strs = [str(token) for token in self._tokenizer.convert_ids_to_tokens(ids)]
        return answer

    async def detokenize(self, request: DetokenizeRequest) -> DetokenizeResponse:
        """The text of some tokens, with its special ones. Raises `ApiError` for one that the model does not have."""
        self._prompts.check_ids(request.tokens, "tokens")
        text = await asyncio.to_thread(self._tokenizer.decode, request.tokens, clean_up_tokenization_spaces=False)
        return DetokenizeResponse(prompt=str(text))
