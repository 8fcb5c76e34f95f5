"""/tokenize and /detokenize, which are vLLM's: the requests and the answers."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Discriminator, Tag

from quire_engine.server.protocol.chat import ChatPrompt
from quire_engine.server.protocol.fields import Text, TokenIds


class TokenizeTextRequest(BaseModel):
    model_config = ConfigDict(extra="allow")

    model: str | None = None
    prompt: Text
    add_special_tokens: bool = True
    return_token_strs: bool | None = False


class TokenizeChatRequest(ChatPrompt):
    model_config = ConfigDict(extra="allow")

    model: str | None = None
    return_token_strs: bool | None = False


def _kind(body: object) -> str:
    chat = "messages" in body if isinstance(body, dict) else isinstance(body, TokenizeChatRequest)
    return "of-chat" if chat else "of-text"


TokenizeRequest = Annotated[
    Annotated[TokenizeTextRequest, Tag("of-text")] | Annotated[TokenizeChatRequest, Tag("of-chat")],
    Discriminator(_kind),
]


class TokenizeResponse(BaseModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(BaseModel):
    model_config = ConfigDict(extra="allow")

    model: str | None = None
    tokens: TokenIds


class DetokenizeResponse(BaseModel):
    prompt: str
