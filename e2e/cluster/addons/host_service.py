"""Services of the cluster whose endpoint is a process of the machine."""

from __future__ import annotations

import base64
from pathlib import Path

from e2e.cluster import network
from e2e.cluster.addons.addon import Manifest


def namespace(name: str) -> Manifest:
    """A namespace."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def host_service(namespace: str, name: str, *, port: int, listens_on: int) -> list[Manifest]:
    """A Service without a selector and its endpoint: a process on the node's address, at the port `listens_on`."""
    metadata = {"name": name, "namespace": namespace}
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": [{"port": port}]}},
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {**metadata, "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [network.ADDRESS]}],
            "ports": [{"port": listens_on}],
        },
    ]


def aggregated_api(group: str, version: str, namespace: str, service: str, authority: Path) -> Manifest:
    """An API group that the API server gets from a Service's port 443, with a certificate that `authority` signed."""
    return {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": f"{version}.{group}"},
        "spec": {
            "group": group,
            "version": version,
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
            "service": {"name": service, "namespace": namespace, "port": 443},
            "caBundle": authority_bundle(authority),
        },
    }


def authority_bundle(authority: Path) -> str:
    """A certificate as `caBundle` fields want it."""
    return base64.b64encode(authority.read_bytes()).decode()
