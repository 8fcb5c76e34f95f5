"""A log line for each sequence that has ended."""

from __future__ import annotations

import logging

from quire_engine.server.metrics import RequestTimes
from quire_engine.server.request_ids import current_id

log = logging.getLogger(__name__)


class RequestLog:
    """Writes at debug, or at info where the server was asked for a line each request. Never a prompt or an answer."""

    def __init__(self, *, wanted: bool) -> None:
        self._level = logging.INFO if wanted else logging.DEBUG

    def ended(self, times: RequestTimes, reason: str, now: float) -> None:
        """One sequence has ended for `reason` at `now`, by time.monotonic()."""
        if not log.isEnabledFor(self._level):
            return
        parts = [f"{times.num_prompt_tokens} tokens in ({times.num_cached} cached), {times.num_generated} out"]
        if times.started is not None:
            parts.append(f"{times.started - times.arrival:.3f} s queued")
        if times.first_token is not None:
            parts.append(f"first token after {times.first_token - times.arrival:.3f} s")
        log.log(
            self._level, "%s: %s: %s, %.3f s in all", current_id() or "-", reason, ", ".join(parts), now - times.arrival
        )
