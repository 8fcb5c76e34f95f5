"""/v1/embeddings: the request and the answer."""

from __future__ import annotations

import time
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from quire_engine.server.protocol.fields import CacheSalt, Text, TokenIds
from quire_engine.server.protocol.usage import Usage
from quire_engine.server.request_ids import answer_id

MAX_INPUTS = 2048  # OpenAI's


class EmbeddingRequest(BaseModel):
    """Fields of other servers are let pass unread."""

    model_config = ConfigDict(extra="allow")
    # Known fields that would change the vectors and are not built.
    not_supported: ClassVar[tuple[str, ...]] = ("messages", "embed_dtype", "use_activation")

    model: str | None = None
    input: (
        Text
        | Annotated[list[Text], Field(fail_fast=True)]
        | TokenIds
        | Annotated[list[TokenIds], Field(fail_fast=True)]
    )
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: int | None = Field(default=None, ge=1)
    truncate_prompt_tokens: int | None = Field(default=None, ge=-1)
    normalize: bool | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None
    cache_salt: CacheSalt | None = None
    user: str | None = None

    @model_validator(mode="after")
    def _check(self) -> EmbeddingRequest:
        for name in self.not_supported:
            if (self.model_extra or {}).get(name) is not None:
                raise ValueError(f"{name} is not supported yet: leave it out")
        several = not isinstance(self.input, str) and not isinstance(next(iter(self.input), None), int)
        if several and len(self.input) > MAX_INPUTS:
            raise ValueError(f"input holds {len(self.input)} texts: one request takes {MAX_INPUTS}, send several")
        return self


class EmbeddingData(BaseModel):
    index: int
    object: Literal["embedding"] = "embedding"
    embedding: list[float] | str  # numbers, or their float32 bytes, the lowest first, in base64


class EmbeddingResponse(BaseModel):
    id: str = Field(default_factory=lambda: answer_id("embd"))
    object: Literal["list"] = "list"
    created: int = Field(default_factory=lambda: int(time.time()))
    model: str
    data: list[EmbeddingData]
    usage: Usage
