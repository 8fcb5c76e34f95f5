"""`spec.service`, `spec.security` and `spec.monitoring`: who reaches the model, and who watches it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from quire_operator.api.duration import DURATION, Duration, parse_duration
from quire_operator.api.fields import Fields
from quire_operator.api.names import NamespaceName, SecretKeyRef, StringMap
from quire_operator.api.rule import Rule

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
    """Who may send requests. The pods themselves then reach DNS, the hub and each other, and nothing else."""

    allowed_namespaces: Annotated[list[NamespaceName], Field(max_length=64)]
    """Namespaces whose pods may; the LLMService's own is always among them."""


class Security(Fields):
    """Who may use the model."""

    api_key_secret_ref: SecretKeyRef | None = None
    """Key that requests must bring as a bearer token."""

    network_policy: NetworkPolicy | None = None
    """Limits on who reaches the pods, and on where these connect to; none when unset."""


def _is_within(text: str, seconds: float) -> bool:
    try:
        return parse_duration(text) <= seconds
    except ValueError:
        return True  # refused for what it is


def _at_most(longest: str, why: str) -> Rule:
    seconds = parse_duration(longest)
    return Rule(
        cel=f"!self.matches('{DURATION}') || duration(self) <= duration('{longest}')",
        message=f"longer than {longest}, {why}: write at most {longest}",
        holds=lambda text: _is_within(text, seconds),
    )


class SLO(Fields):
    """What counts as fast enough. Alerts tell when too many requests are slower."""

    time_to_first_token: Annotated[Duration, _at_most("160s", "beyond which the engine does not measure")] = "2500ms"
    """From a request to its first token, such as 2500ms."""

    time_per_output_token: Annotated[Duration, _at_most("10s", "beyond which the engine does not measure")] = "100ms"
    """Between the tokens of an answer, on average, such as 100ms."""

    objective: Annotated[
        float,
        Rule(
            cel="self >= 0.5 && self < 1.0",
            message="an objective is a share of requests from 0.5 up to, but not, 1, such as 0.95",
            holds=lambda share: 0.5 <= share < 1.0,
        ),
    ] = 0.95
    """Share of requests, over 30 days, that must be faster."""


class Monitoring(Fields):
    """What the Prometheus operator is told. auto means: where its resources exist, and the engine has metrics."""

    service_monitor: Switch = "auto"
    """Make a ServiceMonitor, by which every pod is scraped."""

    alerts: Switch = "auto"
    """Make a PrometheusRule with the alerts that docs/operations.md explains."""

    interval: Annotated[Duration, _at_most("1m", "and alerts look at windows of 5m")] = "15s"
    """How often pods are scraped."""

    labels: StringMap = Field(default_factory=dict)
    """Labels by which the monitoring stack selects both, such as release: kube-prometheus."""

    slo: SLO = Field(default_factory=SLO)
    """What counts as fast enough, for alerts."""
