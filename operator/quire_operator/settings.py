"""The operator's own settings, from flags and the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

from quire_operator import __version__
from quire_operator.api.engine import is_pinned
from quire_operator.plan.gpu_memory import parse_product

ENVIRONMENT_PREFIX = "QUIRE_OPERATOR_"


class SettingsError(ValueError):
    """A setting has a value that cannot be used; says which and what to write."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Each field is a flag of `quire-operator run` (`--engine-image`) and a variable (QUIRE_OPERATOR_ENGINE_IMAGE)."""

    engine_image: str = f"quire/engine:{__version__}"
    """Image of services that name none."""

    hub_endpoint: str = ""
    """URL of a Hugging Face mirror, given to every pod as HF_ENDPOINT."""

    prometheus_address: str = ""
    """URL of the Prometheus that autoscaling asks, for services that name none; and the operator, for advice."""

    cluster_domain: str = "cluster.local"
    """The cluster's DNS domain, as in status.url."""

    namespaces: tuple[str, ...] = ()
    """Namespaces to serve; all when empty. In the environment, separated by commas."""

    monitoring_namespaces: tuple[str, ...] = ()
    """Namespaces that Prometheus scrapes from, let in by NetworkPolicies. In the environment, separated by commas."""

    workers: int = 20
    """LLMServices that are reconciled at once."""

    leader_election: bool = True
    """Take a Lease before doing anything, so that several replicas can run."""

    lease_namespace: str = ""
    """Namespace of the Lease; the pod's own when empty."""

    lease_name: str = "quire-operator"
    """Name of the Lease."""

    lease_seconds: int = 15
    """How long a leader that has gone silent keeps the Lease."""

    health_port: int = 8080
    """Port of /healthz, /readyz and /metrics; 0 takes a free one."""

    gpu_products: tuple[str, ...] = ()
    """GPUs that the plan's table lacks or has otherwise, as NAME=MIB. In the environment, separated by commas."""

    plan_reads_tokens: bool = False
    """Read the Secrets that services name for a gated model, to plan it. Needs `get` of secrets."""

    plan_reads_any_hub: bool = False
    """Plan services that set HF_ENDPOINT too. Their authors then choose a URL that the operator asks."""

    runbook_url: str = "https://quire.dev/operations.html"
    """Where docs/operations.md can be read; alerts link to their heading in it."""

    gpu_hourly_prices: tuple[str, ...] = ()
    """What an hour of a GPU costs, as PRODUCT=PRICE; default is the rest. In the environment, separated by commas."""

    log_level: str = "info"
    """debug, info, warning or error."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise SettingsError(f"--workers is {self.workers}: write at least 1")
        if self.lease_seconds < 3:
            raise SettingsError(f"--lease-seconds is {self.lease_seconds}: write at least 3")
        if not 0 <= self.health_port <= 65535:
            raise SettingsError(f"--health-port is {self.health_port}: write a port, or 0 for a free one")
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise SettingsError(f"--log-level is {self.log_level!r}: write debug, info, warning or error")
        try:
            self.products()
        except ValueError as error:
            raise SettingsError(f"--gpu-product: {error}") from None
        self.prices()
        if not is_pinned(self.engine_image):
            raise SettingsError(
                f"--engine-image is {self.engine_image!r}: write a tag other than latest, or a digest, "
                "such as quire/engine:0.1.0"
            )

    def products(self) -> dict[str, int]:
        """MiB of a GPU by product, from `gpu_products`."""
        return dict(parse_product(text) for text in self.gpu_products)

    def prices(self) -> dict[str, float]:
        """Price of an hour by product, from `gpu_hourly_prices`; that of `default` is 0 when it is not given."""
        return {"default": 0.0, **dict(_parse_price(text) for text in self.gpu_hourly_prices)}


def settings_from(environment: Mapping[str, str] = os.environ, **flags: object) -> Settings:
    """Settings from `QUIRE_OPERATOR_*`, with the flags that are not None put over them. Raises SettingsError."""
    values: dict[str, object] = {}
    for field in fields(Settings):
        variable = ENVIRONMENT_PREFIX + field.name.upper()
        if flags.get(field.name) is not None:
            values[field.name] = flags[field.name]
        elif environment.get(variable):
            values[field.name] = _parsed(variable, environment[variable], field.default)
    # each value is of its own field: read by its type, or given as a flag
    return Settings(**values)  # type: ignore[arg-type]


def _parse_price(text: str) -> tuple[str, float]:
    product, _, price = text.rpartition("=")
    if not product or re.fullmatch(r"\d+(\.\d+)?", price) is None:
        raise SettingsError(f"--gpu-hourly-price: {text!r}: write PRODUCT=PRICE, such as default=2.5")
    return product, float(price)


def _parsed(variable: str, text: str, default: object) -> object:
    if isinstance(default, bool):
        if text.lower() not in ("true", "false", "1", "0"):
            raise SettingsError(f"{variable} is {text!r}: write true or false")
        return text.lower() in ("true", "1")
    if isinstance(default, int):
        if not text.isdecimal():
            raise SettingsError(f"{variable} is {text!r}: write a whole number")
        return int(text)
    if isinstance(default, tuple):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    return text
