"""PromQL, put together so that an idle service gives a number, and never NaN or nothing."""

from __future__ import annotations


def equal(**labels: str) -> str:
    """Matchers of exact values, to be put between braces: another service whose name begins alike is not seen."""
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())


def or_zero(expression: str) -> str:
    """0 where there is no series at all."""
    return f"({expression}) or on () vector(0)"


def ratio(part: str, whole: str) -> str:
    """`part` / `whole`, and 0 while `whole` is nothing."""
    return or_zero(f"({part}) / (({whole}) > 0)")


def quantile(share: float, histogram: str, matchers: str, window: str) -> str:
    """A quantile of a histogram's recent observations, and 0 while there are none."""
    buckets = f"sum by (le) (rate({histogram}_bucket{{{matchers}}}[{window}]))"
    return or_zero(f"histogram_quantile({share}, {buckets}) >= 0")


def duration(seconds: float) -> str:
    """As Prometheus writes it, which knows no fractions: `90s`, or `1500ms`."""
    milliseconds = round(seconds * 1000)
    return f"{milliseconds // 1000}s" if milliseconds % 1000 == 0 else f"{milliseconds}ms"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
