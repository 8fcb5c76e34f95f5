"""Alerts and recorded series, as the Prometheus operator takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Severity = Literal["critical", "warning"]
"""critical: users notice, somebody has to look now. warning: today."""


@dataclass(frozen=True, kw_only=True)
class Alert:
    """Something that a person has to know of."""

    name: str
    """Also the heading in docs/operations.md that says what to do."""

    when: str
    """PromQL; fires for each series that it gives."""

    lasting: str = "0s"
    """How long that must hold."""

    severity: Severity
    summary: str
    description: str
    """What is measured and what it means. `$value` and `$labels` are Prometheus' own."""

    labels: Mapping[str, str] = field(default_factory=dict)

    def as_rule(self, runbook: str) -> dict[str, Any]:
        """The entry of a group. `runbook` is where docs/operations.md can be read."""
        return {
            "alert": self.name,
            "expr": self.when,
            "for": self.lasting,
            "labels": {"severity": self.severity, **self.labels},
            "annotations": {
                "summary": self.summary,
                "description": self.description,
                "runbook_url": f"{runbook}#{self.name.lower()}",
            },
        }


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A series that is computed once for all that read it."""

    name: str
    expression: str
    labels: Mapping[str, str]

    def as_rule(self, runbook: str) -> dict[str, Any]:
        """The entry of a group."""
        return {"record": self.name, "expr": self.expression, "labels": dict(self.labels)}


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rules that are evaluated together, in this order."""

    name: str
    rules: Sequence[Alert | Recording]
    interval: str | None = None
    """How often; as often as that Prometheus does by default when unset."""

    def as_manifest(self, runbook: str) -> dict[str, Any]:
        """The entry of a PrometheusRule's `spec.groups`."""
        group: dict[str, Any] = {"name": self.name, "rules": [rule.as_rule(runbook) for rule in self.rules]}
        return group if self.interval is None else {**group, "interval": self.interval}
