"""What the routes work with: complete once the engine is ready."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from quire_engine.server.adapters import Adapters
from quire_engine.server.api_keys import ApiKeys
from quire_engine.server.chat import Chat
from quire_engine.server.completions import Completions
from quire_engine.server.embeddings import Embeddings
from quire_engine.server.engine_client import EngineClient
from quire_engine.server.errors import ApiError
from quire_engine.server.lifecycle import Lifecycle, State
from quire_engine.server.metrics import Metrics
from quire_engine.server.protocol.models import ModelCard
from quire_engine.server.responses import Responses
from quire_engine.server.scores import Scores
from quire_engine.server.settings import ServerSettings
from quire_engine.server.tokenization import Tokenization
from quire_engine.server.tracing.facts import current_facts

if TYPE_CHECKING:
    from quire_engine.server.tracing.export import SpanExport

_Part = TypeVar("_Part")


@dataclass
class Service:
    """What the routes work with.

    Once the tokenizer and the engine are there, `tokenization` is, and `completions`, `chat` and `responses`, or
    `embeddings` and `scores`, by what the model does.
    """

    settings: ServerSettings
    keys: ApiKeys
    lifecycle: Lifecycle
    metrics: Metrics
    client: EngineClient
    model_names: tuple[str, ...]
    adapters: Adapters
    spans: SpanExport | None = None
    cards: list[ModelCard] = field(default_factory=list)
    completions: Completions | None = None
    chat: Chat | None = None
    responses: Responses | None = None
    embeddings: Embeddings | None = None
    scores: Scores | None = None
    tokenization: Tokenization | None = None

    def health(self) -> tuple[int, str]:
        """Status code and reason. 200 only while the engine gives signs of life and the server takes requests."""
        state = self.lifecycle.state
        if self.client.failure is not None:
            return 503, self.client.failure
        if state is State.STARTING:
            return 503, self.starting()
        if state is not State.SERVING:
            return 503, state.value
        silent = self.client.seconds_silent()
        if silent > self.settings.stall_timeout:
            return 503, f"stalled: no sign of the engine for {silent:.0f} s"
        return 200, "ok"

    def starting(self) -> str:
        return f"the model is being loaded (done last: {self.client.phase}): try again in some seconds"

    def checked_model(self, asked: str | None) -> str:
        """The name to answer with. Raises `ApiError` for a model that is not served here."""
        facts = current_facts()
        if facts is not None:
            facts.asked_model = asked
        if asked and asked not in self.model_names and asked not in self.adapters.cards:
            served = ", ".join((*self.model_names, *self.adapters.cards))
            raise ApiError(404, f"the model {asked!r} is not served here: use {served}", param="model")
        name = asked or self.model_names[0]
        if facts is not None:
            facts.model = name
        return name

    def of_text(self, part: _Part | None) -> _Part:
        """Raises `ApiError` where the model generates no text."""
        if part is None:
            raise ApiError(400, f"{self.model_names[0]} makes embeddings and generates no text: use /v1/embeddings")
        return part

    def of_vectors(self, part: _Part | None) -> _Part:
        """Raises `ApiError` where the model makes no vectors."""
        if part is None:
            raise ApiError(
                400,
                f"{self.model_names[0]} generates text and makes no embeddings: use /v1/chat/completions or "
                "/v1/completions, or start the server with --task embed",
            )
        return part

    def check_queue(self) -> None:
        """Raises `ApiError` 429 when as many requests wait as `--max-waiting` allows."""
        limit = self.settings.max_waiting
        # The engine's number is that of its last step: the requests of a burst have to be counted here.
        full = self.lifecycle.in_flight > self.client.config.max_num_seqs + limit
        if limit and (full or self.client.stats.num_waiting >= limit):
            self.metrics.rejections.inc()
            raise ApiError(429, f"{limit} requests are waiting already: try again", headers={"retry-after": "1"})
