"""Arithmetic of the benchmarks, against numpy and by hand."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire_engine.bench.arrivals import arrivals
from quire_engine.bench.figures import figures, percentile
from quire_engine.bench.outcome import Outcome
from quire_engine.bench.plot import drawing

TWO = [
    Outcome(10, begun=100.0, ttft=0.5, itls=[0.1, 0.3], latency=0.9, output_len=3),
    Outcome(20, begun=100.5, ttft=1.0, itls=[], latency=1.0, output_len=1),
]
FAILED = Outcome(7, begun=100.0, error="503: try again")


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.floats(0, 100))
def test_percentiles_are_numpys(values: list[float], percent: float) -> None:
    expected = np.percentile(values, percent)
    assert percentile(sorted(values), percent) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_figures_count_whole_answers_alone() -> None:
    found = figures([*TWO, FAILED], 2.0, [50, 99.9], ["ttft", "tpot", "itl", "e2el"], {"ttft": 600})
    assert {k: found[k] for k in ("completed", "failed", "total_input_tokens", "total_output_tokens")} == {
        "completed": 2,
        "failed": 1,
        "total_input_tokens": 30,
        "total_output_tokens": 4,
    }
    assert (found["request_throughput"], found["output_throughput"], found["total_token_throughput"]) == (1, 2, 17)
    assert found["request_goodput"] == 0.5
    assert found["mean_ttft_ms"] == pytest.approx(750)
    # an answer of one token has no time per further token
    assert found["mean_tpot_ms"] == pytest.approx(200)
    assert found["p50_itl_ms"] == pytest.approx(200)
    assert found["p99.9_e2el_ms"] == pytest.approx(999.9)
    # 100.5, 100.6 and 100.9 are within the first second, 101.5 in the second one
    assert found["max_output_tokens_per_s"] == pytest.approx(3)
    assert found["max_concurrent_requests"] == 2


def test_a_run_in_which_all_failed_has_figures_too() -> None:
    found = figures([FAILED], 1.0, [99], ["ttft"])
    assert (found["completed"], found["mean_ttft_ms"], found["max_output_tokens_per_s"]) == (0, 0, 0)


@given(st.integers(1, 200), st.floats(0.1, 1000), st.floats(0.1, 10))
def test_requests_come_in_order_and_the_last_when_the_rate_says(number: int, rate: float, burstiness: float) -> None:
    times = arrivals(number, rate, burstiness, seed=3)
    assert times == sorted(times)
    assert times[-1] == pytest.approx(number / rate)
    assert arrivals(number, math.inf, burstiness, seed=3) == [0.0] * number


def test_gaps_are_as_even_as_burstiness_says() -> None:
    def variation(burstiness: float) -> float:
        gaps = np.diff(arrivals(5000, 10.0, burstiness, seed=0))
        return float(gaps.std() / gaps.mean())

    # a gamma distribution of shape k has the coefficient of variation 1 / sqrt(k)
    for burstiness in (0.25, 1.0, 4.0):
        assert variation(burstiness) == pytest.approx(burstiness**-0.5, rel=0.1)


@given(st.lists(st.floats(0, 1e7), min_size=1, max_size=30))
def test_a_drawing_is_xml_whose_curve_stays_in_its_panel(values: list[float]) -> None:
    root = ElementTree.fromstring(drawing({"ttft": values, "itl": []}, "<model> & co"))
    (curve,) = root.iter("{http://www.w3.org/2000/svg}polyline")
    points = [tuple(map(float, point.split(","))) for point in curve.attrib["points"].split()]
    assert all(0 <= x <= 420 and 0 <= y <= 260 for x, y in points)
    assert points == sorted(points, key=lambda point: (point[0], -point[1]))
