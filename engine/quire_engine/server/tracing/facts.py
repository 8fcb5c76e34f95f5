"""What is found out about a request while it is answered. Nothing here imports OpenTelemetry."""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from quire_engine.sampling_params import SamplingParams
from quire_engine.server.metrics import RequestTimes

if TYPE_CHECKING:
    from quire_engine.server.sequences import TokenCount

_current: ContextVar[RequestFacts] = ContextVar("request_facts")


@dataclass(frozen=True)
class Operation:
    """What an endpoint does, as `gen_ai.operation.name` calls it, and how the ids of its answers begin."""

    name: str
    id_prefix: str


@dataclass
class RequestFacts:
    """One request, from its head to the end of its answer. Neither its prompt nor its answer."""

    operation: Operation
    request_id: str | None
    traceparent: str | None = None  # the caller's, as W3C's Trace Context has it
    tracestate: str = ""
    begun_ns: int = field(default_factory=time.time_ns)
    route: str | None = None
    status: int = 500  # what is left where no answer is sent
    asked_model: str | None = None
    model: str | None = None
    is_streamed: bool = False
    params: SamplingParams | None = None  # of its first prompt; none for what generates no text
    count: TokenCount | None = None
    failed_with: int | None = None  # the status that it would have had, had its head not been sent before it failed
    sequences: list[RequestTimes] = field(default_factory=list)  # those that have ended
    ended: float | None = None  # when the last of them did, by time.monotonic()


def begin(facts: RequestFacts) -> None:
    """What follows in this context is about that request."""
    _current.set(facts)


def current_facts() -> RequestFacts | None:
    """Those of the request that is being answered, where it is traced."""
    return _current.get(None)


def note_start(count: TokenCount, params: SamplingParams | None) -> None:
    """The current request can be answered. `count` may grow."""
    facts = current_facts()
    if facts is not None:
        facts.count, facts.params = count, params


def note_end(times: RequestTimes, now: float) -> None:
    """A sequence of the current request has ended at `now`, by time.monotonic()."""
    facts = current_facts()
    if facts is not None:
        facts.sequences.append(times)
        facts.ended = now


def note_failure(status: int) -> None:
    """The answer to the current request breaks off with what would have this status, had its head not been sent."""
    facts = current_facts()
    if facts is not None:
        facts.failed_with = status
