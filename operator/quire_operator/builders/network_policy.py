"""The NetworkPolicy: who may send requests to the engines, and where these may connect to."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from quire_operator.api import LLMService
from quire_operator.builders.cached_model import asks_no_hub
from quire_operator.builders.circumstances import Circumstances
from quire_operator.builders.claim import cache_claim_name
from quire_operator.builders.engine_env import engine_env
from quire_operator.builders.identity import FIELD_MANAGER, Manifest, child_metadata, engine_pods
from quire_operator.builders.local_copy import stage_containers

SUFFIX = "netpol"
_NAMESPACE_NAME = "kubernetes.io/metadata.name"
"""Label that the API server itself puts on every namespace."""

_DNS: Manifest = {"ports": [{"protocol": name, "port": port} for port in (53, 5353) for name in ("UDP", "TCP")]}
"""To anywhere, since resolvers of nodes have no pod that a selector could name. OpenShift's pods listen on 5353."""

_OUTSIDE: list[Manifest] = [
    {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}},
    {"ipBlock": {"cidr": "::/0", "except": ["fe80::/10"]}},
]
"""Anywhere but link-local addresses, where clouds hand out what a node may do."""

_CLUSTER: list[Manifest] = [{"namespaceSelector": {}}]

_WEB_PORTS = (80, 443)
_URL_VARIABLES = ("HF_ENDPOINT", "HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")


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
        "egress": [_DNS, *_to_the_hub(service, circumstances)],
    }
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


def _to_the_hub(service: LLMService, circumstances: Circumstances) -> Iterator[Manifest]:
    """Ways to the hub and to what stands before it; none for pods that find their weights without one."""
    env = engine_env(service, circumstances)
    copying = [variable for before in stage_containers(service, circumstances) for variable in before["env"]]
    is_copied_from_hub = bool(copying) and cache_claim_name(service) is None
    if asks_no_hub(env) and not is_copied_from_hub:
        return
    variables = [*env, *copying]
    urls = [str(variable.get("value", "")) for variable in variables if variable["name"].upper() in _URL_VARIABLES]
    places = [place for url in urls if (place := _place(url)) is not None]
    ports = sorted({*_WEB_PORTS, *(port for _, port in places if port is not None)})
    yield {"to": _OUTSIDE, "ports": [{"protocol": "TCP", "port": port} for port in ports]}
    if any(_is_in_cluster(host) for host, _ in places):
        # which port a pod listens on is the Service's secret, and the policy is asked after it has told
        yield {"to": _CLUSTER}


def _place(url: str) -> tuple[str, int | None] | None:
    """Host and port; None for what is no URL, as the engine will say."""
    try:
        parts = urlsplit(url)
        return (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        return None


def _is_in_cluster(host: str) -> bool:
    """Whether a name is a Service's: NAME, NAME.NAMESPACE.svc, or that with the cluster's domain."""
    is_short = host not in ("", "localhost") and not {".", ":"} & set(host)
    return is_short or host.endswith(".svc") or ".svc." in host
