"""The metrics that tell of each LLMService. Set anew for each scrape, they leave nothing of what is gone."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping
from typing import Any

from quire_operator import metrics
from quire_operator.kubeapi.client import Object

UNKNOWN_PRODUCT = "GPU"
"""Of GPUs whose kind neither the spec nor a node names, as the plan calls them."""


def count_services(services: Iterable[Object], prices: Mapping[str, float]) -> None:
    """Set all of them. `prices` are those of an hour of a GPU by product, and of any other as `default`."""
    for gauge in (metrics.services, metrics.replicas, metrics.conditions, metrics.gpus, metrics.gpu_hourly_price):
        gauge.clear()
    states: collections.Counter[tuple[str, str]] = collections.Counter()
    products = {product for product in prices if product != "default"}
    for item in services:
        namespace, name = item["metadata"]["namespace"], item["metadata"]["name"]
        status: Mapping[str, Any] = item.get("status") or {}
        states[_ready(status)] += 1
        for state, number in _replicas(status).items():
            metrics.replicas.labels(namespace, name, state).set(number)
        for condition in status.get("conditions") or []:
            kind = (condition["type"], condition["status"], condition["reason"])
            metrics.conditions.labels(namespace, name, *kind).set(1)
        product = str(status.get("gpuProduct") or UNKNOWN_PRODUCT)
        products.add(product)
        metrics.gpus.labels(namespace, name, product).set(status.get("gpus") or 0)
    for (ready, reason), number in states.items():
        metrics.services.labels(ready, reason).set(number)
    for product in products:
        metrics.gpu_hourly_price.labels(product).set(prices.get(product, prices["default"]))


def _ready(status: Mapping[str, Any]) -> tuple[str, str]:
    for condition in status.get("conditions") or []:
        if condition["type"] == "Ready":
            return condition["status"], condition["reason"]
    return "Unknown", "NotSeenYet"


def _replicas(status: Mapping[str, Any]) -> dict[str, int]:
    """Nothing before the first status: 0 of 0 would be a claim."""
    ready, _, wanted = str(status.get("ready") or "").partition("/")
    return {"ready": int(ready), "wanted": int(wanted)} if ready.isdecimal() and wanted.isdecimal() else {}
