"""A histogram for what is observed with every token."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


class PlainHistogram(Collector):
    """Exposes what prometheus_client's would, and costs a tenth: no locks, as only the event loop's thread observes."""

    def __init__(
        self,
        name: str,
        text: str,
        labels: Mapping[str, str],
        buckets: tuple[float, ...],
        registry: CollectorRegistry,
    ) -> None:
        """`buckets` are the upper bounds of all but the last, which has none."""
        self._name, self._text, self._labels, self._bounds = name, text, labels, buckets
        self._counts = [0] * (len(buckets) + 1)
        self._sum = 0.0
        registry.register(self)

    def observe(self, amount: float) -> None:
        self._counts[bisect_left(self._bounds, amount)] += 1
        self._sum += amount

    def collect(self) -> Iterable[Metric]:
        so_far, buckets = 0, []
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            so_far += count
            buckets.append((bound, float(so_far)))
        family = HistogramMetricFamily(self._name, self._text, labels=tuple(self._labels))
        family.add_metric(tuple(self._labels.values()), buckets, self._sum)
        yield family
