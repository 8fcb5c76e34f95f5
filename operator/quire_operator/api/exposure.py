"""`spec.service`, `spec.security` and `spec.monitoring`: who reaches the model, and who watches it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from quire_operator.api.duration import Duration
from quire_operator.api.fields import Fields
from quire_operator.api.names import ObjectName, SecretKeyRef, StringMap

Switch = Literal["auto", "enabled", "disabled"]


class Service(Fields):
    """The Service that clients reach."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    """How far the Service is reachable."""

    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """Port of the Service, named http."""

    annotations: StringMap = Field(default_factory=dict)
    """Annotations of the Service, for a cloud's load balancer."""


class NetworkPolicy(Fields):
    """Who may send requests."""

    allowed_namespaces: Annotated[list[ObjectName], Field(max_length=64)]
    """Namespaces whose pods may; the LLMService's own is always among them."""


class Security(Fields):
    """Who may use the model."""

    api_key_secret_ref: SecretKeyRef | None = None
    """Key that requests must bring as a bearer token."""

    network_policy: NetworkPolicy | None = None
    """Limits on who reaches the pods; none when unset. Not supported yet."""


class Monitoring(Fields):
    """What the Prometheus operator is told. auto means: where its resources exist."""

    service_monitor: Switch = "auto"
    """Make a ServiceMonitor. Not supported yet: auto makes none."""

    alerts: Switch = "auto"
    """Make a PrometheusRule. Not supported yet: auto makes none."""

    interval: Duration = "15s"
    """How often pods are scraped. Not supported yet."""

    labels: StringMap = Field(default_factory=dict)
    """Labels by which the monitoring stack selects them, such as release: kube-prometheus. Not supported yet."""
