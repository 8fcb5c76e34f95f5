"""`spec.autoscaling`: how many replicas serve, by what is measured."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from quire_operator.api.duration import Duration
from quire_operator.api.fields import Fields
from quire_operator.api.names import LocalObjectRef, Opaque
from quire_operator.api.rule import Rule


class QueueDepth(Fields):
    """Scaling by the requests that wait."""

    target: Annotated[int, Field(ge=1, le=1_000_000)] = 5
    """Waiting requests for each replica."""

    activation: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    """More waiting requests than this count as use. A service that answers a request is in use anyway."""


class Latency(Fields):
    """Scaling by a quantile of latency."""

    metric: Literal["timePerOutputToken", "timeToFirstToken"]
    """What is measured."""

    quantile: Annotated[
        float,
        Rule(
            cel="self > 0.0 && self < 1.0",
            message="a quantile is between 0 and 1, such as 0.95",
            holds=lambda quantile: 0.0 < quantile < 1.0,
        ),
    ] = 0.95
    """Share of requests that must be faster than the target."""

    target: Duration
    """Latency to keep, such as 60ms."""

    activation: Duration | None = None
    """A higher latency than this counts as use. A service that answers a request is in use anyway."""


class Prometheus(Fields):
    """The Prometheus that KEDA asks."""

    server_address: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """Its URL; the operator's default when unset."""

    authentication_ref: LocalObjectRef | None = None
    """A KEDA TriggerAuthentication."""


class Autoscaling(Fields):
    """Scaling by load, instead of a fixed number of replicas."""

    backend: Literal["keda", "hpa"] = "keda"
    """What scales: a KEDA ScaledObject or a HorizontalPodAutoscaler."""

    min_replicas: Annotated[int, Field(ge=0, le=1000)] = 1
    """Fewest replicas; 0 scales to zero, and needs backend keda and triggers that wake the service."""

    max_replicas: Annotated[int, Field(ge=1, le=1000)]
    """Most replicas."""

    queue_depth: QueueDepth | None = None
    """By waiting requests. Taken with its defaults when neither latency nor triggers are given."""

    latency: Latency | None = None
    """By latency; needs backend keda."""

    polling_seconds: Annotated[int, Field(ge=1, le=3600)] = 15
    """How often KEDA reads metrics for a service without replicas; otherwise the HorizontalPodAutoscaler does."""

    cooldown_seconds: Annotated[int, Field(ge=0, le=86400)] = 300
    """How long a service must be out of use before its replicas go, where it may scale to zero."""

    idle_replicas: Annotated[int, Field(ge=0, le=1000)] | None = None
    """Replicas while the service is out of use, below minReplicas: 0, or left out. Needs backend keda, and triggers."""

    fallback_replicas: Annotated[int, Field(ge=1, le=1000)] | None = None
    """At least so many replicas while metrics are out; when unset, replicas are held. Needs KEDA 2.18 or later."""

    triggers: Annotated[list[Opaque], Field(max_length=16)] = Field(default_factory=list)
    """Further KEDA triggers, as they are; the one that wants most replicas wins. Needs backend keda."""

    behavior: Opaque | None = None
    """behavior of a HorizontalPodAutoscaler v2. Default: one more replica a minute, one less every two minutes."""

    prometheus: Prometheus | None = None
    """Where KEDA reads metrics."""

    rules = (
        Rule(
            cel="self.minReplicas <= self.maxReplicas",
            message="spec.autoscaling.minReplicas is above maxReplicas: lower one or raise the other",
            field=".minReplicas",
            holds=lambda self: self.min_replicas <= self.max_replicas,
        ),
        Rule(
            cel="self.minReplicas > 0 || self.backend == 'keda'",
            message="spec.autoscaling.minReplicas is 0, which a HorizontalPodAutoscaler cannot do: "
            "write 1 or more, or backend: keda",
            field=".minReplicas",
            holds=lambda self: self.min_replicas > 0 or self.backend == "keda",
        ),
        Rule(
            cel="!has(self.idleReplicas) || (self.idleReplicas == 0 && self.minReplicas > 0)",
            message="spec.autoscaling.idleReplicas can only be 0, with minReplicas of 1 or more: a "
            "HorizontalPodAutoscaler keeps minReplicas of what has any. Write 0, or leave it out",
            field=".idleReplicas",
            holds=lambda self: self.idle_replicas is None or (self.idle_replicas == 0 and self.min_replicas > 0),
        ),
        Rule(
            cel="(self.minReplicas > 0 && !has(self.idleReplicas)) || self.backend != 'keda' || "
            "(has(self.triggers) && size(self.triggers) > 0)",
            message="spec.autoscaling scales to zero, and nothing would wake the service: queueDepth and latency are "
            "read from its own pods. Add to triggers what asks elsewhere, such as cron, or write minReplicas 1 or more "
            "and no idleReplicas",
            field=".triggers",
            holds=lambda self: not self.may_sleep or self.backend != "keda" or bool(self.triggers),
        ),
        Rule(
            cel="self.backend == 'keda' || !(has(self.latency) || has(self.idleReplicas) || has(self.fallbackReplicas)"
            " || has(self.prometheus) || (has(self.triggers) && size(self.triggers) > 0))",
            message="spec.autoscaling.backend is hpa, which scales by queueDepth alone: leave latency, idleReplicas, "
            "fallbackReplicas, triggers and prometheus out, or write keda",
            field=".backend",
            holds=lambda self: self.backend == "keda" or not self.asks_for_keda,
        ),
    )

    @property
    def asks_for_keda(self) -> bool:
        """Whether it sets what a plain HorizontalPodAutoscaler cannot do."""
        fields = (self.latency, self.idle_replicas, self.fallback_replicas, self.prometheus)
        return bool(self.triggers) or any(field is not None for field in fields)

    @property
    def queue(self) -> QueueDepth | None:
        """The queue to scale by: as written, and by default where nothing else is."""
        if self.queue_depth is None and self.latency is None and not self.triggers:
            return QueueDepth()
        return self.queue_depth

    @property
    def may_sleep(self) -> bool:
        """Whether it may scale to zero."""
        return self.min_replicas == 0 or self.idle_replicas is not None

    @property
    def first_replicas(self) -> int:
        """Replicas of a new service, before anything was measured."""
        return self.min_replicas if self.idle_replicas is None else self.idle_replicas
