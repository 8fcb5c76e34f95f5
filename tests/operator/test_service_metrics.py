"""The operator's metrics of each LLMService."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import REGISTRY

from quire_operator.run.service_metrics import count_services
from quire_operator.settings import Settings, SettingsError

PRICES = {"default": 1.0, "NVIDIA-L4": 0.5}


def item(name: str = "llama", status: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"metadata": {"namespace": "inference", "name": name}, "spec": {}, "status": status or {}}


def value(metric: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"quire_operator_{metric}", labels)


def of_service(metric: str, name: str = "llama", **labels: str) -> float | None:
    return value(f"llmservice_{metric}", namespace="inference", name=name, **labels)


@pytest.fixture(autouse=True)
def _empty() -> Any:
    yield
    count_services([], {"default": 0.0})


def condition(kind: str, status: str, reason: str) -> dict[str, str]:
    return {"type": kind, "status": status, "reason": reason}


def test_replicas_are_those_of_the_status() -> None:
    count_services([item(status={"ready": "2/3"}), item("new")], PRICES)
    assert (of_service("replicas", state="ready"), of_service("replicas", state="wanted")) == (2, 3)
    assert of_service("replicas", "new", state="wanted") is None


def test_each_condition_is_there_as_it_is_now_and_not_as_it_was() -> None:
    was = [condition("Ready", "False", "Starting"), condition("Reconciling", "True", "Starting")]
    count_services([item(status={"conditions": was})], PRICES)
    assert of_service("condition", type="Ready", status="False", reason="Starting") == 1
    count_services([item(status={"conditions": [condition("Ready", "True", "Serving")]})], PRICES)
    assert of_service("condition", type="Ready", status="True", reason="Serving") == 1
    assert of_service("condition", type="Ready", status="False", reason="Starting") is None
    assert of_service("condition", type="Reconciling", status="True", reason="Starting") is None
    assert value("llmservices", ready="True", reason="Serving") == 1


def test_what_is_gone_leaves_no_series_behind() -> None:
    status = {"ready": "1/1", "gpus": 1, "conditions": [condition("Ready", "True", "Serving")]}
    count_services([item(status={**status, "gpuProduct": "NVIDIA-L4"}), item("other", status=status)], PRICES)
    count_services([item("other", status=status)], PRICES)
    left = [
        sample
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name.startswith("quire_operator_llmservice_") and sample.labels["name"] == "llama"
    ]
    assert left == []
    assert of_service("gpus", "other", product="GPU") == 1


@pytest.mark.parametrize(("known", "product"), [({"gpuProduct": "NVIDIA-L4"}, "NVIDIA-L4"), ({}, "GPU")])
def test_the_product_is_that_of_the_gpus_which_pods_hold(known: dict[str, str], product: str) -> None:
    count_services([item(status={"gpus": 4, **known})], PRICES)
    assert of_service("gpus", product=product) == 4


def test_every_product_in_use_has_a_price_so_that_cost_is_a_plain_product() -> None:
    count_services([item(status={"gpus": 4}), item("b", {"gpus": 1, "gpuProduct": "NVIDIA-H200"})], PRICES)
    prices = {product: value("gpu_hourly_price", product=product) for product in ("GPU", "NVIDIA-H200", "NVIDIA-L4")}
    assert prices == {"GPU": 1.0, "NVIDIA-H200": 1.0, "NVIDIA-L4": 0.5}


def test_prices_come_from_the_settings() -> None:
    assert Settings().prices() == {"default": 0.0}
    prices = Settings(gpu_hourly_prices=("default=2", "NVIDIA-L4=0.55")).prices()
    assert prices == {"default": 2.0, "NVIDIA-L4": 0.55}


@pytest.mark.parametrize("text", ["2.5", "=2", "NVIDIA-L4=", "NVIDIA-L4=-1", "NVIDIA-L4=cheap"])
def test_a_price_that_is_none_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(SettingsError, match="write PRODUCT=PRICE"):
        Settings(gpu_hourly_prices=(text,))
