"""The Deployment that runs the engines."""

from __future__ import annotations

from quire_operator.api import LLMService
from quire_operator.builders.circumstances import Circumstances
from quire_operator.builders.identity import Manifest, child_metadata, selector_labels
from quire_operator.builders.pod import build_pod_template
from quire_operator.builders.stopped_rollout import ANNOTATION

_STARTUP_SLACK_SECONDS = 600
"""For scheduling and pulling the image, before the startup probe begins to count."""


def progress_deadline(service: LLMService) -> int:
    """Seconds without progress after which a rollout counts as stalled."""
    own = service.spec.rollout.progress_deadline_seconds
    return own or service.spec.probes.startup_seconds + _STARTUP_SLACK_SECONDS


def build_deployment(service: LLMService, circumstances: Circumstances) -> Manifest | None:
    """The Deployment NAME; none while suspended, and where a replica is a group of pods.

    Without spec.replicas the count is left out: it is set once at creation, and later it is whoever's that scales.
    After a rollout that was stopped, the pods are those that served before.
    """
    if service.spec.suspend or service.spec.parallelism.nodes > 1:
        return None
    rollout = service.spec.rollout
    stopped = circumstances.stopped
    metadata = child_metadata(service)
    if stopped is not None:
        metadata["annotations"] = {ANNOTATION: stopped.annotation()}
    strategy: Manifest = {"type": rollout.strategy}
    if rollout.strategy == "RollingUpdate":
        strategy["rollingUpdate"] = {"maxSurge": rollout.max_surge, "maxUnavailable": rollout.max_unavailable}
    spec: Manifest = {
        "selector": {"matchLabels": selector_labels(service)},
        "strategy": strategy,
        "progressDeadlineSeconds": progress_deadline(service),
        "template": stopped.template if stopped is not None else build_pod_template(service, circumstances),
    }
    if service.spec.replicas is not None and not circumstances.scalers_leaving:
        spec["replicas"] = service.spec.replicas
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}
