"""Which add-ons are started, in what order, and what they are configured to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from e2e.cluster import network
from e2e.cluster.addons import catalog, prometheus
from e2e.cluster.addons.host_service import host_service
from e2e.cluster.errors import ClusterError
from e2e.cluster.recipes import RECIPES


@pytest.mark.parametrize("name", catalog.ADDONS)
def test_an_addon_is_started_after_what_it_requires_and_each_once(name: str) -> None:
    order = catalog.ordered([name, name])
    assert order[-1] == name
    assert len(order) == len(set(order))
    for position, each in enumerate(order):
        assert set(catalog.ADDONS[each].requires) <= set(order[:position])


def test_an_unknown_addon_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ClusterError, match=r"'kedda'.*prometheus"):
        catalog.ordered(["kedda"])


@pytest.mark.parametrize("name", catalog.ADDONS)
def test_there_is_a_recipe_for_each_program_of_an_addon(name: str) -> None:
    assert set(catalog.ADDONS[name].programs) <= set(RECIPES)


def test_prometheus_scrapes_pods_that_ask_for_it_under_the_labels_that_queries_use() -> None:
    config = json.loads(prometheus.config(Path("/state/admin.kubeconfig")))
    (pods,) = config["scrape_configs"]
    assert pods["kubernetes_sd_configs"] == [{"role": "pod", "kubeconfig_file": "/state/admin.kubeconfig"}]
    labels = {rule["target_label"] for rule in pods["relabel_configs"] if "target_label" in rule}
    assert {"namespace", "pod", "llmservice"} <= labels


def test_a_service_of_the_machine_selects_no_pods_and_has_its_endpoint_written_by_hand() -> None:
    service, endpoints = host_service("monitoring", "prometheus", port=80, listens_on=9090)
    assert "selector" not in service["spec"]
    assert endpoints["metadata"]["labels"]["kubernetes.io/service-name"] == service["metadata"]["name"]
    assert endpoints["endpoints"] == [{"addresses": [network.ADDRESS]}]
    assert (service["spec"]["ports"], endpoints["ports"]) == ([{"port": 80}], [{"port": 9090}])
