"""Who reaches the engines, and where these connect to: the pure builder, and its life on a real API server."""

from __future__ import annotations

from typing import Any

import pytest

from quire_operator.builders.circumstances import Circumstances
from quire_operator.builders.network_policy import build_network_policy
from quire_operator.kubeapi.resources import LLMSERVICES, NETWORK_POLICIES
from quire_operator.settings import Settings
from tests.operator.api_client import Namespace, eventually
from tests.operator.operator_process import OperatorProcess
from tests.operator.services import CIRCUMSTANCES, manifest, service

LIMITED = {"networkPolicy": {"allowedNamespaces": ["web"]}}
NAMESPACE = "kubernetes.io/metadata.name"
PODS = {"serving.quire.dev/llmservice": "llama", "app.kubernetes.io/component": "engine"}


def policy(circumstances: Circumstances = CIRCUMSTANCES, **spec: Any) -> dict[str, Any]:
    built = build_network_policy(service(security=LIMITED, **spec), circumstances)
    assert built is not None
    return dict(built["spec"])


def ports(**spec: Any) -> set[int]:
    """Where the engine may connect to besides DNS."""
    found = policy(**spec)["egress"]
    return {port["port"] for rule in found for port in rule.get("ports", [])} - {53, 5353}


def test_there_is_none_unless_asked_for() -> None:
    assert build_network_policy(service(), CIRCUMSTANCES) is None


def test_the_engines_of_this_service_alone_are_limited_in_both_directions() -> None:
    built = policy()
    assert built["podSelector"] == {"matchLabels": PODS}
    assert built["policyTypes"] == ["Ingress", "Egress"]


def test_its_own_the_allowed_and_the_monitoring_namespaces_may_reach_the_port_of_the_service() -> None:
    settings = Settings(monitoring_namespaces=("monitoring", "web"))
    (rule,) = policy(Circumstances(settings))["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": "http"}]
    (expression,) = rule["from"][0]["namespaceSelector"]["matchExpressions"]
    assert expression == {"key": NAMESPACE, "operator": "In", "values": ["default", "web", "monitoring"]}


def test_of_the_operators_namespace_its_own_pods_may_and_no_others() -> None:
    (rule,) = policy(Circumstances(Settings(), operator_namespace="ops"))["ingress"]
    assert rule["from"][1:] == [
        {
            "namespaceSelector": {"matchLabels": {NAMESPACE: "ops"}},
            "podSelector": {"matchLabels": {"app.kubernetes.io/name": "quire-operator"}},
        }
    ]


def test_weights_that_are_here_already_leave_dns_as_the_only_way_out() -> None:
    (dns,) = policy()["egress"]
    both = [{"protocol": name, "port": port} for port in (53, 5353) for name in ("UDP", "TCP")]
    assert dns == {"ports": both}
    assert ports(model={"source": "pvc://weights/llama"}) == set()


def env(**variables: str) -> dict[str, Any]:
    return {"env": [{"name": name, "value": value} for name, value in variables.items()]}


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        ({}, {80, 443}),
        (env(HF_ENDPOINT="http://hub:8080"), {80, 443, 8080}),
        (env(https_proxy="http://proxy.example.com:3128"), {80, 443, 3128}),
        (env(HF_ENDPOINT="http://hub:port"), {80, 443}),
        (env(HF_HUB_OFFLINE="true", HF_ENDPOINT="http://hub:8080"), set()),
        ({"env": [{"name": "HTTPS_PROXY", "valueFrom": {"secretKeyRef": {"name": "p", "key": "u"}}}]}, {80, 443}),
    ],
)
def test_a_download_may_reach_the_hub_its_mirror_and_its_proxy(engine: dict[str, Any], expected: set[int]) -> None:
    assert ports(model={"source": "hf://org/name"}, engine=engine) == expected


def test_the_operators_own_mirror_is_reached_on_its_port() -> None:
    built = policy(Circumstances(Settings(hub_endpoint="http://mirror:9000")), model={"source": "hf://org/name"})
    assert {"protocol": "TCP", "port": 9000} in built["egress"][1]["ports"]


def test_a_download_may_not_reach_the_clouds_metadata() -> None:
    (_, outside) = policy(model={"source": "hf://org/name"})["egress"]
    assert outside["to"] == [
        {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}},
        {"ipBlock": {"cidr": "::/0", "except": ["fe80::/10"]}},
    ]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://hub", True),
        ("http://hub.models.svc:80", True),
        ("http://hub.models.svc.cluster.local.", True),
        ("https://hub.example.com:8443", False),
        ("http://localhost:3128", False),
        ("http://[fd00::1]:3128", False),
        ("http://10.0.0.7:8080", False),
    ],
)
def test_a_mirror_or_proxy_in_the_cluster_is_reached_on_whatever_port_its_pods_have(url: str, expected: bool) -> None:
    for variable in ("HF_ENDPOINT", "HTTPS_PROXY"):
        found = policy(model={"source": "hf://org/name"}, engine=env(**{variable: url}))["egress"]
        assert ({"to": [{"namespaceSelector": {}}]} in found) is expected


def test_pods_of_a_group_reach_each_other_on_every_port_and_single_ones_do_not() -> None:
    name, component = PODS.items()
    roles = [{"key": component[0], "operator": "In", "values": ["engine", "worker"]}]
    group = [{"podSelector": {"matchLabels": dict([name]), "matchExpressions": roles}}]
    spec = {"parallelism": {"tensor": 2, "nodes": 2}, "resources": {"gpu": {"count": None}}}
    assert {"from": group} in policy(**spec)["ingress"]
    assert {"to": group} in policy(**spec)["egress"]
    assert len(policy()["ingress"]) == len(policy()["egress"]) == 1


def test_pods_that_still_finish_requests_of_a_suspended_service_stay_limited() -> None:
    assert policy(suspend=True) == policy()


@pytest.mark.control_plane
def test_a_policy_follows_the_spec_and_is_put_back_when_someone_widens_it(
    namespace: Namespace, operator: OperatorProcess
) -> None:
    namespace.create(manifest("closed", security=LIMITED))
    made = eventually(lambda: namespace.find(NETWORK_POLICIES, "closed-netpol"))
    assert made["spec"]["ingress"][0]["from"][0]["namespaceSelector"]["matchExpressions"][0]["values"] == [
        namespace.name,
        "web",
    ]
    operators = made["spec"]["ingress"][0]["from"][1]["namespaceSelector"]["matchLabels"]
    assert operators == {NAMESPACE: "quire-system"}

    wide = {"spec": {"ingress": [{}]}}
    namespace.api.patch(NETWORK_POLICIES, namespace.name, "closed-netpol", wide)
    eventually(lambda: namespace.get(NETWORK_POLICIES, "closed-netpol")["spec"] == made["spec"])

    namespace.change("closed", {"security": {"networkPolicy": None}})
    eventually(lambda: namespace.find(NETWORK_POLICIES, "closed-netpol") is None)
    namespace.api.delete(LLMSERVICES, namespace.name, "closed")
