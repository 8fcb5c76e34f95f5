"""The condition Monitored: whether the Prometheus operator was told what the spec asks for."""

from __future__ import annotations

from quire_operator.api import LLMService
from quire_operator.builders.engines import engine_of
from quire_operator.builders.service_monitor import wants_service_monitor
from quire_operator.kubeapi.resources import PROMETHEUS_RULES, SERVICE_MONITORS
from quire_operator.reconcile.conditions import Verdict
from quire_operator.reconcile.observation import Observation

_KINDS = (SERVICE_MONITORS.kind, PROMETHEUS_RULES.kind)


def judge_monitoring(service: LLMService, observation: Observation) -> Verdict | None:
    """None where nothing is asked for, or `auto` finds no Prometheus operator."""
    monitoring, there = service.spec.monitoring, observation.capabilities
    parts = (
        (
            "serviceMonitor",
            "ServiceMonitor",
            monitoring.service_monitor if wants_service_monitor(service) else "disabled",
            there.service_monitors,
        ),
        ("alerts", "PrometheusRule", monitoring.alerts, there.prometheus_rules),
    )
    missing = [(field, kind) for field, kind, switch, is_served in parts if switch == "enabled" and not is_served]
    if missing:
        fields = " and ".join(f"spec.monitoring.{field}" for field, _ in missing)
        kinds = " or ".join(kind for _, kind in missing)
        text = (
            f"{fields}: enabled, and the cluster knows no {kinds}: "
            "install the Prometheus operator, or write auto or disabled"
        )
        return Verdict("Monitored", False, "PrometheusOperatorMissing", text)
    problems = [problem for (kind, _), problem in observation.aside.items() if kind in _KINDS]
    if problems:
        text = "; ".join(problem.message for problem in problems)
        return Verdict("Monitored", False, problems[0].reason, text)
    made = [kind for _, kind, switch, is_served in parts if switch != "disabled" and is_served]
    if not made:
        return None
    text = f"the Prometheus operator has its {' and '.join(made)}"
    if made == [PROMETHEUS_RULES.kind] and engine_of(service).is_scraped:
        text += (
            ": alerts on the engine need its series with the label llmservice, which its own ServiceMonitor would set"
        )
    return Verdict("Monitored", True, "Monitored", text)
