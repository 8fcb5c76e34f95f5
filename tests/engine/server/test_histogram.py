"""What is observed with every token is exposed as prometheus_client's own histogram would."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Histogram, generate_latest

from quire_engine.server.histogram import PlainHistogram

LABELS = {"model_name": "m", "engine": "0"}
BUCKETS = (0.001, 0.1, 2.5, 10.0)


def exposed(registry: CollectorRegistry) -> list[str]:
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


def test_it_is_exposed_as_the_one_that_it_stands_for() -> None:
    theirs, ours = CollectorRegistry(), CollectorRegistry()
    expected = Histogram("s", "Seconds.", tuple(LABELS), registry=theirs, buckets=BUCKETS).labels(**LABELS)
    plain = PlainHistogram("s", "Seconds.", LABELS, BUCKETS, ours)
    for seconds in (0.0, 0.001, 0.0011, 0.1, 2.0, 2.5, 10.0, 10.5, 600.0):
        expected.observe(seconds)
        plain.observe(seconds)
    assert exposed(ours) == exposed(theirs)
