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
    """Waiting requests that wake a service from zero."""


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
    """Latency that wakes a service from zero."""


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
    """Fewest replicas; 0 scales to zero and needs backend keda."""

    max_replicas: Annotated[int, Field(ge=1, le=1000)]
    """Most replicas."""

    queue_depth: QueueDepth | None = None
    """By waiting requests."""

    latency: Latency | None = None
    """By latency."""

    polling_seconds: Annotated[int, Field(ge=1, le=3600)] = 15
    """How often metrics are read."""

    cooldown_seconds: Annotated[int, Field(ge=0, le=86400)] = 300
    """How long a service must be idle before its last replica goes."""

    idle_replicas: Annotated[int, Field(ge=0, le=1000)] | None = None
    """Replicas while nothing is asked; KEDA's idleReplicaCount."""

    fallback_replicas: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Replicas while metrics are out; when unset, replicas are held as they are."""

    triggers: Annotated[list[Opaque], Field(max_length=16)] = Field(default_factory=list)
    """Further KEDA triggers, as they are."""

    behavior: Opaque | None = None
    """behavior of a HorizontalPodAutoscaler v2."""

    prometheus: Prometheus | None = None
    """Where metrics are read."""

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
            cel="!has(self.idleReplicas) || self.idleReplicas < self.minReplicas",
            message="spec.autoscaling.idleReplicas must be below minReplicas: lower it or leave it out",
            field=".idleReplicas",
            holds=lambda self: self.idle_replicas is None or self.idle_replicas < self.min_replicas,
        ),
    )
