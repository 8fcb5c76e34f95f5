"""The version of every program that is built here."""

from __future__ import annotations

KUBERNETES = "v1.34.10"  # etcd comes from the same module graph
COREDNS = "v1.14.2"
HELM = "v3.20.2"
KEDA = "v2.19.0"
PROMETHEUS = "v0.305.0"  # the module's number for Prometheus 3.5
PROMETHEUS_OPERATOR = "v0.85.0"
PROMETHEUS_ADAPTER = "v0.12.0"
KUBE_ROUTER = "v2.1.0"
KWOK = "v0.7.0"
LWS = "v0.8.0"
ARGO_CD = "v3.2.0"
FLUX_SOURCES = "v1.7.0"  # source-controller, kustomize-controller and helm-controller of Flux 2.7
FLUX_KUSTOMIZE = "v1.7.3"
FLUX_HELM = "v1.4.0"
KSERVE = "v0.15.2"  # a rival, to measure beside us


def minor(version: str) -> str:
    """`"34"` for `"v1.34.10"`."""
    return version.removeprefix("v").split(".")[1]
