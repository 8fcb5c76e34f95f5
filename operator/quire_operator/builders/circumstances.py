"""What the children of an LLMService depend on besides its spec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from quire_operator.builders.stopped_rollout import StoppedRollout
from quire_operator.settings import Settings


@dataclass(frozen=True)
class Capabilities:
    """Which optional APIs the cluster serves."""

    keda: bool = False
    """ScaledObject."""

    custom_metrics: bool = False
    """Metrics of pods for a HorizontalPodAutoscaler, which an adapter serves."""

    service_monitors: bool = False
    """ServiceMonitor of the Prometheus operator."""

    prometheus_rules: bool = False
    """PrometheusRule of the Prometheus operator."""

    leader_worker_sets: bool = False
    """LeaderWorkerSet."""


EVERYTHING = Capabilities(
    keda=True, custom_metrics=True, service_monitors=True, prometheus_rules=True, leader_worker_sets=True
)
"""A cluster that has them all."""


@dataclass(frozen=True)
class Circumstances:
    """Where a service is built for, and what was found out about it."""

    settings: Settings
    capabilities: Capabilities = field(default_factory=Capabilities)
    operator_namespace: str = "quire-system"
    """Where the operator itself runs."""

    cached_revision: str | None = None
    """The revision of the model that is on the cache's claim; None while pods have to download it."""

    cached_adapters: Mapping[str, str] = field(default_factory=dict)
    """Adapters that are on the cache's claim: the revision of each, by its name."""

    claim_size: str | None = None
    """What the claim that the operator made asks for by now."""

    replaced_replicas: int | None = None
    """How many replicas the workload of the other kind has, whose place ours is about to take."""

    stopped: StoppedRollout | None = None
    """What is served in place of a rollout that failed."""

    scalers_leaving: bool = False
    """A scaler that is no longer wanted is still there: until it is gone, it may still set the number of replicas."""
