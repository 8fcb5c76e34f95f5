"""A dashboard of rows of panels, and the JSON that Grafana imports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

_WIDTH = 24
_SCHEMA_VERSION = 39
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}

WINDOW = "$__rate_interval"
"""Grafana's window for rates: at least four scrapes."""

RANGE = "$__range"
"""What the dashboard shows."""


@dataclass(frozen=True)
class Query:
    """PromQL, and what to call each of its series."""

    expression: str
    legend: str = ""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One picture: lines over time, one number as of now, or a table of the labels of now."""

    title: str
    queries: Sequence[Query]
    description: str
    kind: Literal["timeseries", "stat", "table"] = "timeseries"
    unit: str = "short"
    width: int = 8
    height: int = 8
    stacked: bool = False
    links: Sequence[dict[str, Any]] = ()
    """Where a click on a row of a table leads."""

    def as_json(self, number: int, x: int, y: int) -> dict[str, Any]:
        """The panel, at a place of the grid."""
        defaults: dict[str, Any] = {"unit": self.unit, "min": 0, "links": list(self.links)}
        if self.kind == "timeseries":
            defaults["custom"] = {
                "lineWidth": 1,
                "fillOpacity": 20 if self.stacked else 5,
                "showPoints": "never",
                "stacking": {"mode": "normal" if self.stacked else "none"},
            }
        panel: dict[str, Any] = {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.description,
            "datasource": _DATASOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "fieldConfig": {"defaults": defaults, "overrides": []},
            "options": _OPTIONS[self.kind],
            "targets": [self._target(index, query) for index, query in enumerate(self.queries)],
        }
        if self.kind == "table":
            hidden = {"excludeByName": {"Time": True, "Value": True, "__name__": True}}
            panel["transformations"] = [{"id": "organize", "options": hidden}]
        return panel

    def _target(self, index: int, query: Query) -> dict[str, Any]:
        is_instant = self.kind != "timeseries"
        return {
            "refId": chr(ord("A") + index),
            "datasource": _DATASOURCE,
            "expr": query.expression,
            "legendFormat": query.legend or "__auto",
            "instant": is_instant,
            "range": not is_instant,
            "format": "table" if self.kind == "table" else "time_series",
        }


_OPTIONS: dict[str, dict[str, Any]] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "colorMode": "none",
        "graphMode": "none",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "textMode": "auto",
    },
    "table": {"showHeader": True},
}


@dataclass(frozen=True)
class Row:
    """Panels below one heading, from left to right, and on to the next line where they do not fit."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True, kw_only=True)
class Variable:
    """A choice at the top: the values of a label."""

    name: str
    label: str
    series: str

    def as_json(self) -> dict[str, Any]:
        """The entry of `templating`."""
        query = f"label_values({self.series}, {self.label})"
        return {
            "name": self.name,
            "type": "query",
            "datasource": _DATASOURCE,
            "definition": query,
            "query": {"query": query, "refId": self.name},
            "refresh": 2,  # when the time range changes
            "sort": 1,
            "multi": False,
            "includeAll": False,
            "options": [],
            "current": {},
        }


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """One page."""

    uid: str
    title: str
    description: str
    rows: Sequence[Row]
    variables: Sequence[Variable] = ()

    def panels(self) -> list[Panel]:
        """All panels, in their order."""
        return [panel for row in self.rows for panel in row.panels]

    def as_json(self) -> dict[str, Any]:
        """What Grafana imports."""
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["quire"],
            "schemaVersion": _SCHEMA_VERSION,
            "version": 1,
            "editable": True,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": {"from": "now-1h", "to": "now"},
            "timezone": "browser",
            "templating": {"list": [_choice_of_datasource(), *(variable.as_json() for variable in self.variables)]},
            "annotations": {"list": []},
            "links": [],
            "panels": self._placed(),
        }

    def _placed(self) -> list[dict[str, Any]]:
        placed: list[dict[str, Any]] = []
        y = 0
        for row in self.rows:
            place = {"x": 0, "y": y, "w": _WIDTH, "h": 1}
            placed.append(
                {
                    "id": len(placed) + 1,
                    "type": "row",
                    "title": row.title,
                    "gridPos": place,
                    "collapsed": False,
                    "panels": [],
                }
            )
            y += 1
            x = height = 0
            for panel in row.panels:
                if x + panel.width > _WIDTH:
                    x, y, height = 0, y + height, 0
                placed.append(panel.as_json(len(placed) + 1, x, y))
                x, height = x + panel.width, max(height, panel.height)
            y += height
        return placed


def _choice_of_datasource() -> dict[str, Any]:
    return {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "refresh": 1,
        "multi": False,
        "includeAll": False,
        "options": [],
        "current": {},
    }
