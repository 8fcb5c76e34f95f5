"""How fast an objective's error budget burns, over two windows at a time, as in the SRE workbook.

The long window says that it matters, the short one that it still goes on. The budget is that of 30 days: at 14.4 times
the sustainable rate 2% of it are gone in an hour, at 1 time 10% in three days.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quire_operator.monitoring.promql import duration
from quire_operator.monitoring.rule import Recording

ERRORS = "llmservice:slo_errors:ratio_rate"
"""The recorded share of requests that missed an objective; the window follows."""

FEWEST_REQUESTS = 10
"""In a long window: of fewer, a single slow one would be most of the budget."""

_MOST = 0.9
"""A low objective's budget cannot burn 14.4 times as fast: nine misses in ten count as that."""


@dataclass(frozen=True)
class Burn:
    """Two windows in seconds, and how many times too fast the budget burns in both."""

    long: int
    short: int
    factor: float


FAST = (Burn(3600, 300, 14.4), Burn(6 * 3600, 1800, 6.0))
"""Somebody is woken."""

SLOW = (Burn(24 * 3600, 2 * 3600, 3.0), Burn(3 * 24 * 3600, 6 * 3600, 1.0))
"""Somebody looks at it in the morning."""


def windows_of(burns: Sequence[Burn]) -> list[int]:
    """All windows, each once, the shortest first."""
    return sorted({window for burn in burns for window in (burn.long, burn.short)})


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A share of requests that has to be faster than a threshold."""

    name: str
    histogram: str
    matchers: str
    threshold: float
    """Seconds."""

    share: float
    buckets: Sequence[float]
    """The histogram's bounds, between which requests are taken to be spread evenly."""

    labels: Mapping[str, str]

    def recordings(self, windows: Sequence[int]) -> list[Recording]:
        """The share of misses in each window."""
        return [
            Recording(
                name=f"{ERRORS}{_name(window)}",
                expression=self._misses(duration(window)),
                labels={**self.labels, "slo": self.name},
            )
            for window in windows
        ]

    def burns(self, burns: Sequence[Burn]) -> str:
        """PromQL: the budget burns as fast as any of `burns` says."""
        selector = ",".join(f'{key}="{value}"' for key, value in {**self.labels, "slo": self.name}.items())
        alternatives = []
        for burn in burns:
            most = f"{min(burn.factor * (1 - self.share), _MOST):.6g}"
            requests = f"sum(increase({self.histogram}_count{{{self.matchers}}}[{duration(burn.long)}]))"
            alternatives.append(
                f"({ERRORS}{_name(burn.long)}{{{selector}}} > {most}"
                f" and {ERRORS}{_name(burn.short)}{{{selector}}} > {most}"
                f" and on () {requests} >= {FEWEST_REQUESTS})"
            )
        return " or ".join(alternatives)

    def _misses(self, window: str) -> str:
        """Nothing rather than NaN while there are no requests."""
        whole = f"sum(rate({self.histogram}_count{{{self.matchers}}}[{window}]))"
        return f"1 - ({self._met(window)}) / ({whole} > 0)"

    def _met(self, window: str) -> str:
        """Requests a second that were fast enough."""
        below = max((bound for bound in self.buckets if bound <= self.threshold), default=None)
        above = min((bound for bound in self.buckets if bound >= self.threshold), default=None)
        if above is None or above == below:
            return self._within(below or 0.0, window)
        if below is None:
            return f"{self.threshold / above:.6g} * {self._within(above, window)}"
        part = (self.threshold - below) / (above - below)
        return f"{1 - part:.6g} * {self._within(below, window)} + {part:.6g} * {self._within(above, window)}"

    def _within(self, bound: float, window: str) -> str:
        return f'sum(rate({self.histogram}_bucket{{{self.matchers},le="{bound}"}}[{window}]))'


def _name(window: int) -> str:
    """A window in the name of a series: 5m, 6h, 3d."""
    for seconds, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if window % seconds == 0:
            return f"{window // seconds}{unit}"
    return f"{window}s"
