"""The NetworkPolicy: who may send requests to the engines, and where these may connect to."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from quire_operator.api import LLMService
from quire_operator.builders.circumstances import Circumstances
from quire_operator.builders.engine_env import engine_env
from quire_operator.builders.identity import FIELD_MANAGER, Manifest, child_metadata, engine_pods

SUFFIX = "netpol"
_NAMESPACE_NAME = "kubernetes.io/metadata.name"
"""Label that the API server itself puts on every namespace."""

_DNS: Manifest = {"ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]}
"""To anywhere, since resolvers of nodes have no pod that a selector could name."""

_WEB_PORTS = (80, 443)
_URL_VARIABLES = ("HF_ENDPOINT", "HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
_TRUE = ("1", "ON", "YES", "TRUE")


def build_network_policy(service: LLMService, circumstances: Circumstances) -> Manifest | None:
    """NAME-netpol, where spec.security.networkPolicy asks for one. It stays while suspended: pods may still drain."""
    wanted = service.spec.security.network_policy
    if wanted is None:
        return None
    namespaces = dict.fromkeys(
        (service.metadata.namespace, *wanted.allowed_namespaces, *circumstances.settings.monitoring_namespaces)
    )
    clients = [_namespaces(*namespaces), _operator(circumstances.operator_namespace)]
    group = [{"podSelector": engine_pods(service)}]
    spec: Manifest = {
        "podSelector": engine_pods(service),
        "policyTypes": ["Ingress", "Egress"],
        # the port by its name, as the Service has it: podTemplate may give the name to another container
        "ingress": [{"from": clients, "ports": [{"protocol": "TCP", "port": "http"}]}],
        "egress": [_DNS],
    }
    outside = sorted(_ports_outside(service, circumstances))
    if outside:
        spec["egress"].append({"ports": [{"protocol": "TCP", "port": port} for port in outside]})
    if service.spec.parallelism.nodes > 1:
        spec["ingress"].append({"from": group})
        spec["egress"].append({"to": group})
    metadata = child_metadata(service, SUFFIX)
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}


def _namespaces(*names: str) -> Manifest:
    expression = {"key": _NAMESPACE_NAME, "operator": "In", "values": list(names)}
    return {"namespaceSelector": {"matchExpressions": [expression]}}


def _operator(namespace: str) -> Manifest:
    return {
        "namespaceSelector": {"matchLabels": {_NAMESPACE_NAME: namespace}},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": FIELD_MANAGER}},
    }


def _ports_outside(service: LLMService, circumstances: Circumstances) -> set[int]:
    """Ports of the hub and of what stands before it; none for an engine that finds its weights without one."""
    variables = {
        variable["name"].upper(): str(variable.get("value", "")) for variable in engine_env(service, circumstances)
    }
    if variables.get("HF_HUB_OFFLINE", "").upper() in _TRUE:
        return set()
    return {*_WEB_PORTS, *_ports(variables.get(name, "") for name in _URL_VARIABLES)}


def _ports(urls: Iterator[str]) -> Iterator[int]:
    for url in urls:
        try:
            port = urlsplit(url).port
        except ValueError:  # the engine will say so
            continue
        if port is not None:
            yield port
