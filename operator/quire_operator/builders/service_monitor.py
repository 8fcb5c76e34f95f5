"""The ServiceMonitor: the Prometheus operator scrapes every pod, ready or not."""

from __future__ import annotations

from quire_operator.api import LLMService
from quire_operator.api.duration import parse_duration
from quire_operator.builders.circumstances import Capabilities
from quire_operator.builders.engines import engine_of
from quire_operator.builders.headless_service import SCRAPED_LABEL
from quire_operator.builders.identity import SERVICE_LABEL, Manifest, child_metadata
from quire_operator.monitoring.promql import duration

SUFFIX = "engine"
API_VERSION = "monitoring.coreos.com/v1"


def build_service_monitor(service: LLMService, capabilities: Capabilities) -> Manifest | None:
    """NAME-engine; none while suspended, where it is not wanted or cannot be.

    Series get the label `llmservice`, by which everything else selects them. The engine's API key does not matter:
    /metrics is open.
    """
    monitoring = service.spec.monitoring
    if service.spec.suspend or not wants_service_monitor(service) or not capabilities.service_monitors:
        return None
    metadata = child_metadata(service, SUFFIX)
    # ours win: it is by them that the operator finds its children again
    metadata["labels"] = {**monitoring.labels, **metadata["labels"]}
    endpoint: Manifest = {
        "port": "http",
        "path": engine_of(service).metrics_path,
        "interval": duration(parse_duration(monitoring.interval)),
        "relabelings": [
            {
                "action": "replace",
                "sourceLabels": [_meta_label(SERVICE_LABEL)],
                "targetLabel": "llmservice",
            }
        ],
    }
    spec: Manifest = {
        "selector": {"matchLabels": {SERVICE_LABEL: service.metadata.name, SCRAPED_LABEL: "true"}},
        "endpoints": [endpoint],
    }
    return {"apiVersion": API_VERSION, "kind": "ServiceMonitor", "metadata": metadata, "spec": spec}


def wants_service_monitor(service: LLMService) -> bool:
    """Whether its engine is to be scraped: auto leaves out one that tells nothing."""
    switch = service.spec.monitoring.service_monitor
    return switch == "enabled" or (switch == "auto" and engine_of(service).is_scraped)


def _meta_label(label: str) -> str:
    """A pod's label as Prometheus' service discovery names it."""
    return "__meta_kubernetes_pod_label_" + "".join(c if c.isalnum() else "_" for c in label)
