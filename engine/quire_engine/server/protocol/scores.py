"""/score, which is vLLM's, and /rerank, which is Jina's and Cohere's: the requests and the answers."""

from __future__ import annotations

import time
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from quire_engine.server.protocol.embeddings import MAX_INPUTS
from quire_engine.server.protocol.fields import CacheSalt, Text
from quire_engine.server.protocol.usage import Usage
from quire_engine.server.request_ids import answer_id

Texts = Text | Annotated[list[Text], Field(fail_fast=True)]


class _ScoringRequest(BaseModel):
    model_config = ConfigDict(extra="allow")

    model: str | None = None
    truncate_prompt_tokens: int | None = Field(default=None, ge=-1)
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None
    cache_salt: CacheSalt | None = None
    user: str | None = None


class ScoreRequest(_ScoringRequest):
    """One text with one or several others, or as many with each other in their order."""

    text_1: Texts
    text_2: Texts

    @property
    def firsts(self) -> list[str]:
        return [self.text_1] if isinstance(self.text_1, str) else self.text_1

    @property
    def seconds(self) -> list[str]:
        return [self.text_2] if isinstance(self.text_2, str) else self.text_2

    @model_validator(mode="after")
    def _check_pairs(self) -> ScoreRequest:
        firsts, seconds = len(self.firsts), len(self.seconds)
        if not firsts or not seconds:
            raise ValueError(f"{'text_2' if firsts else 'text_1'} is empty: send a text, or a list of them")
        if firsts not in (1, seconds):
            raise ValueError(f"text_1 holds {firsts} texts and text_2 {seconds}: send one, or as many as in text_2")
        _check_number(firsts + seconds, "text_1 and text_2 hold")
        return self


class Document(BaseModel):
    text: Text


class RerankRequest(_ScoringRequest):
    query: Text
    documents: Annotated[list[Text | Document], Field(min_length=1, fail_fast=True)]
    top_n: int | None = Field(default=None, ge=0)

    @property
    def texts(self) -> list[str]:
        return [one if isinstance(one, str) else one.text for one in self.documents]

    @model_validator(mode="after")
    def _check_documents(self) -> RerankRequest:
        _check_number(len(self.documents) + 1, "query and documents hold")
        return self


def _check_number(texts: int, hold: str) -> None:
    if texts > MAX_INPUTS:
        raise ValueError(f"{hold} {texts} texts: one request takes {MAX_INPUTS}, send several")


class Score(BaseModel):
    index: int
    object: Literal["score"] = "score"
    score: float


class ScoreResponse(BaseModel):
    id: str = Field(default_factory=lambda: answer_id("score"))
    object: Literal["list"] = "list"
    created: int = Field(default_factory=lambda: int(time.time()))
    model: str
    data: list[Score]
    usage: Usage


class Ranked(BaseModel):
    """`index` is the document's place in the request."""

    index: int
    document: Document
    relevance_score: float


class RerankResponse(BaseModel):
    id: str = Field(default_factory=lambda: answer_id("rerank"))
    model: str
    usage: Usage
    results: list[Ranked]
