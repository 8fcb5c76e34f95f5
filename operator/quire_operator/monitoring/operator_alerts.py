"""The alerts of the operator itself. They come with its chart, which puts its namespace in."""

from __future__ import annotations

from quire_operator.monitoring.promql import equal
from quire_operator.monitoring.rule import Alert, Group


def operator_group(namespace: str) -> Group:
    """The rules of an operator that runs in `namespace`."""
    own = equal(namespace=namespace)
    reconciles = "quire_operator_reconcile_seconds_count"
    failed = f'sum(rate({reconciles}{{{own},result="failed"}}[10m]))'
    return Group(
        name="quire-operator",
        rules=[
            Alert(
                name="QuireOperatorDown",
                when=f"absent(quire_operator_leading{{{own}}})",
                lasting="5m",
                severity="critical",
                summary=f"No operator of namespace {namespace} is seen",
                description="Nothing is scraped of it. What serves goes on serving; no change is acted on.",
            ),
            Alert(
                name="QuireOperatorNotLeading",
                when=f"sum(quire_operator_leading{{{own}}}) < 1",
                lasting="5m",
                severity="critical",
                summary=f"No operator of namespace {namespace} works",
                description="Its replicas run, and none of them has the Lease: no change is acted on.",
            ),
            Alert(
                name="QuireOperatorReconcileErrors",
                when=f"{failed} / sum(rate({reconciles}{{{own}}}[10m])) > 0.1",
                lasting="15m",
                severity="warning",
                summary=f"The operator of namespace {namespace} fails to reconcile",
                description="{{ $value | humanizePercentage }} of reconciles have failed for 15 minutes;"
                " they are tried again, at most a minute apart.",
            ),
        ],
    )
