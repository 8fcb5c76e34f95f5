"""Where the server is in its life, who is being served, and how it goes away without cutting a stream."""

from __future__ import annotations

import asyncio
import enum
import logging
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

RECENTLY_BUSY_SECONDS = 30.0


class State(enum.Enum):
    """STARTING -> SERVING -> (DRAINING ->) STOPPING."""

    STARTING = "starting"  # loading: API requests get 503
    SERVING = "serving"
    DRAINING = "draining"  # not ready any more, yet serving: proxies learn of it meanwhile
    STOPPING = "stopping"  # finishing what runs: new API requests get 503


class Lifecycle:
    """The state and the number of API requests in flight. Belongs to the event loop's thread."""

    def __init__(self, endpoints_lag: float, shutdown_timeout: float) -> None:
        self.state = State.STARTING
        self.in_flight = 0
        self.stop_requested = asyncio.Event()
        self.on_retire: Callable[[], None] = lambda: None  # have busy connections close after their answers
        self.on_close_idle: Callable[[], None] = lambda: None
        self._endpoints_lag = endpoints_lag
        self._shutdown_timeout = shutdown_timeout
        self._last_request = float("-inf")  # time.monotonic()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def leaving(self) -> bool:
        return self.state in (State.DRAINING, State.STOPPING)

    def started(self) -> None:
        if self.state is State.STARTING:
            self.state = State.SERVING

    def enter(self) -> None:
        """An API request begins."""
        self.in_flight += 1
        self._last_request = time.monotonic()
        self._idle.clear()

    def leave(self) -> None:
        """An API request has ended, whichever way."""
        self.in_flight -= 1
        self._last_request = time.monotonic()
        if self.in_flight == 0:
            self._idle.set()

    async def drain(self) -> None:
        """Turn not ready while serving on, until no proxy can send new connections any more.

        Returns at once when nobody has asked for anything lately.
        """
        recently = time.monotonic() - self._last_request < RECENTLY_BUSY_SECONDS
        if self.state is State.SERVING:
            self.state = State.DRAINING
            log.info("draining: %d requests in flight", self.in_flight)
        self.on_retire()
        if self.in_flight or recently:
            await asyncio.sleep(self._endpoints_lag)
        self.on_close_idle()

    def stop(self) -> None:
        """SIGTERM: no new work. The second call ends the wait for running requests."""
        if self.state is State.STOPPING:
            log.warning("second signal: not waiting any longer")
            self._idle.set()
            return
        self.state = State.STOPPING
        log.info("stopping: %d requests in flight get up to %.0f s", self.in_flight, self._shutdown_timeout)
        self.on_retire()
        self.stop_requested.set()

    async def finished(self) -> bool:
        """Wait until no request is in flight. False if some were left when the time was up."""
        try:
            await asyncio.wait_for(self._idle.wait(), self._shutdown_timeout)
        except TimeoutError:
            log.warning("%d requests did not finish within %.0f s", self.in_flight, self._shutdown_timeout)
        return self.in_flight == 0
