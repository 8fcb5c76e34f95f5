"""Figures of a run, under the names that vLLM's benchmark gives them, so that scripts read both."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from quire_engine.bench.outcome import Outcome

TITLES = {
    "ttft": "Time to first token",
    "tpot": "Time per output token, the first left out",
    "itl": "Inter-token latency",
    "e2el": "End-to-end latency",
}
"""What is measured of each answer, in milliseconds."""


def milliseconds(outcomes: Sequence[Outcome], metric: str) -> list[float]:
    """All values of one of `TITLES` in whole answers."""
    whole = [outcome for outcome in outcomes if not outcome.error]
    if metric == "itl":
        return [gap * 1e3 for outcome in whole for gap in outcome.itls]
    if metric == "tpot":
        return [outcome.tpot * 1e3 for outcome in whole if outcome.tpot is not None]
    return [(outcome.ttft if metric == "ttft" else outcome.latency) * 1e3 for outcome in whole]


def figures(
    outcomes: Sequence[Outcome],
    duration: float,
    percentiles: Sequence[float],
    metrics: Sequence[str],
    goodput: Mapping[str, float] | None = None,
) -> dict[str, object]:
    """Rates and distributions. `goodput` gives the most milliseconds of a metric with which an answer is good."""
    whole = [outcome for outcome in outcomes if not outcome.error]
    asked, answered = sum(o.prompt_len for o in whole), sum(o.output_len for o in whole)
    found: dict[str, object] = {
        "duration": duration,
        "completed": len(whole),
        "failed": len(outcomes) - len(whole),
        "total_input_tokens": asked,
        "total_output_tokens": answered,
        "request_throughput": len(whole) / duration,
        "request_goodput": sum(_is_good(o, goodput) for o in whole) / duration if goodput else None,
        "output_throughput": answered / duration,
        "total_token_throughput": (asked + answered) / duration,
        "max_output_tokens_per_s": _peak_rate(whole),
        "max_concurrent_requests": _most_at_once(whole),
    }
    for metric in metrics:
        values = sorted(milliseconds(outcomes, metric)) or [0.0]
        found |= {
            f"mean_{metric}_ms": statistics.fmean(values),
            f"median_{metric}_ms": statistics.median(values),
            f"std_{metric}_ms": statistics.pstdev(values),
        }
        found |= {f"p{_plain(p)}_{metric}_ms": percentile(values, p) for p in percentiles}
    return found


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The value below which `percent` of the ordered values lie, interpolated linearly as numpy does by default."""
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def _plain(percent: float) -> str:
    return str(int(percent)) if float(percent).is_integer() else str(percent)


def _is_good(outcome: Outcome, goodput: Mapping[str, float]) -> bool:
    values = {"ttft": outcome.ttft, "tpot": outcome.tpot or 0.0, "e2el": outcome.latency}
    return all(values[metric] * 1e3 <= most for metric, most in goodput.items())


def _peak_rate(whole: Sequence[Outcome]) -> float:
    """Tokens in the fullest second. Where a piece carries several, they count as evenly spread over the pieces."""
    if not whole:
        return 0.0
    begun = min(outcome.begun for outcome in whole)
    tokens: dict[int, float] = {}
    for outcome in whole:
        times = outcome.arrived
        for time in times:
            second = int(time - begun)
            tokens[second] = tokens.get(second, 0.0) + outcome.output_len / len(times)
    return max(tokens.values())


def _most_at_once(whole: Sequence[Outcome]) -> int:
    changes = [(o.begun, 1) for o in whole] + [(o.begun + o.latency, -1) for o in whole]
    now = most = 0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    return most
