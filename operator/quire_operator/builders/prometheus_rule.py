"""The PrometheusRule: what a person has to know of one LLMService."""

from __future__ import annotations

from quire_operator.api import LLMService
from quire_operator.builders.circumstances import Circumstances
from quire_operator.builders.identity import Manifest, child_metadata
from quire_operator.builders.service_alerts import service_groups
from quire_operator.builders.service_monitor import API_VERSION

SUFFIX = "alerts"


def build_prometheus_rule(service: LLMService, circumstances: Circumstances) -> Manifest | None:
    """NAME-alerts; none while suspended, where it is disabled or cannot be."""
    monitoring = service.spec.monitoring
    if service.spec.suspend or monitoring.alerts == "disabled" or not circumstances.capabilities.prometheus_rules:
        return None
    metadata = child_metadata(service, SUFFIX)
    metadata["labels"] = {**monitoring.labels, **metadata["labels"]}
    groups = [group.as_manifest(circumstances.settings.runbook_url) for group in service_groups(service)]
    return {"apiVersion": API_VERSION, "kind": "PrometheusRule", "metadata": metadata, "spec": {"groups": groups}}
