"""The resources that the operator deals with, and their URLs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quire_operator.api import API_VERSION, KIND, PLURAL


@dataclass(frozen=True)
class Resource:
    """One kind of object."""

    api_version: str
    kind: str
    plural: str

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """URL path of a collection, an object or a subresource."""
        root = "/api" if "/" not in self.api_version else "/apis"
        parts = [root, self.api_version]
        if namespace is not None:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        parts += [part for part in (name, subresource) if part is not None]
        return "/".join(parts)


LLMSERVICES = Resource(API_VERSION, KIND, PLURAL)
DEPLOYMENTS = Resource("apps/v1", "Deployment", "deployments")
SERVICES = Resource("v1", "Service", "services")
SERVICE_ACCOUNTS = Resource("v1", "ServiceAccount", "serviceaccounts")
CLAIMS = Resource("v1", "PersistentVolumeClaim", "persistentvolumeclaims")
DISRUPTION_BUDGETS = Resource("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets")
NETWORK_POLICIES = Resource("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies")
REPLICA_SETS = Resource("apps/v1", "ReplicaSet", "replicasets")
AUTOSCALERS = Resource("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
PODS = Resource("v1", "Pod", "pods")
JOBS = Resource("batch/v1", "Job", "jobs")
EVENTS = Resource("v1", "Event", "events")
NAMESPACES = Resource("v1", "Namespace", "namespaces")
NODES = Resource("v1", "Node", "nodes")
SECRETS = Resource("v1", "Secret", "secrets")
SCALED_OBJECTS = Resource("keda.sh/v1alpha1", "ScaledObject", "scaledobjects")
SERVICE_MONITORS = Resource("monitoring.coreos.com/v1", "ServiceMonitor", "servicemonitors")
PROMETHEUS_RULES = Resource("monitoring.coreos.com/v1", "PrometheusRule", "prometheusrules")
LEADER_WORKER_SETS = Resource("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet", "leaderworkersets")
API_GROUPS = Resource("v1", "APIGroup", "apigroups")
LEASES = Resource("coordination.k8s.io/v1", "Lease", "leases")

CHILDREN = (SERVICE_ACCOUNTS, NETWORK_POLICIES, CLAIMS, SERVICES, DISRUPTION_BUDGETS, DEPLOYMENTS, AUTOSCALERS)
"""What the operator applies and prunes on every cluster."""

OPTIONAL_CHILDREN: Mapping[Resource, str] = {
    SCALED_OBJECTS: "keda",
    SERVICE_MONITORS: "service_monitors",
    PROMETHEUS_RULES: "prometheus_rules",
    LEADER_WORKER_SETS: "leader_worker_sets",
}
"""What it applies and prunes where the cluster serves it, and the field of `Capabilities` that says so."""

WATCHED = (*CHILDREN, PODS)
"""What tells it on every cluster how a service is doing."""

_BY_KIND = {(resource.api_version, resource.kind): resource for resource in (*CHILDREN, *OPTIONAL_CHILDREN)}


def resource_of(manifest: Mapping[str, Any]) -> Resource:
    """The resource that a child's manifest belongs to. Raises KeyError for a kind that is no child."""
    return _BY_KIND[manifest["apiVersion"], manifest["kind"]]


def child_resource(kind: str) -> Resource:
    """The resource of the children of this kind. Raises KeyError for a kind that is no child."""
    return next(resource for (_, name), resource in _BY_KIND.items() if name == kind)
