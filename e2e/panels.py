"""The queries of a dashboard, as Grafana would send them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Sample = tuple[dict[str, str], float]


@dataclass(frozen=True)
class PanelQuery:
    """One query of one panel, ready to be sent."""

    panel: str
    legend: str
    expression: str
    is_table: bool

    def __str__(self) -> str:
        return f"{self.panel} / {self.legend}"


def panel_queries(dashboard: dict[str, Any], *, window: str, shown: str, **variables: str) -> Iterator[PanelQuery]:
    """Every query of a dashboard's JSON, with Grafana's variables filled in. `shown` is the time range.

    Costs are summed second by second here, and not minute by minute, since tests last less than an hour.
    """
    values = {"__rate_interval": window, "__range": shown, **variables}
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"].replace(":1m]", ":1s]")
            for name, value in values.items():
                expression = expression.replace(f"${name}", value)
            assert "$" not in expression, f"{panel['title']} uses a variable that the dashboard has not: {expression}"
            yield PanelQuery(panel["title"], target["legendFormat"], expression, panel["type"] == "table")


def is_number(samples: Sequence[Sample]) -> bool:
    """Whether there is a series at all, and each of them is a number."""
    return bool(samples) and not any(math.isnan(value) or math.isinf(value) for _, value in samples)
