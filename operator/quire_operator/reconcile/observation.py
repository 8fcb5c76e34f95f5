"""What is there of an LLMService, as numbers and faults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quire_operator.api import LLMService
from quire_operator.builders.circumstances import Capabilities
from quire_operator.builders.claim import cache_claim_name
from quire_operator.builders.scaling import Obstacle
from quire_operator.builders.stopped_rollout import StoppedRollout
from quire_operator.kubeapi.client import Object
from quire_operator.reconcile.changes import ChildKey
from quire_operator.reconcile.children import Problem
from quire_operator.reconcile.faults import Fault, pod_fault, template_hash
from quire_operator.reconcile.prefetching import CacheState

REVISION = "deployment.kubernetes.io/revision"
"""Annotation by which the Deployment's controller counts templates."""


@dataclass(frozen=True)
class Observation:
    """The state of the children at one moment."""

    children: Mapping[ChildKey, Object] = field(default_factory=dict)
    pods: Sequence[Object] = ()
    capabilities: Capabilities = field(default_factory=Capabilities)
    stopped: StoppedRollout | None = None
    """The rollout that was stopped, while the spec asks for it."""

    scaling_obstacle: Obstacle | None = None
    """Why there is no scaler though the spec asks for one."""

    aside: Mapping[ChildKey, Problem] = field(default_factory=dict)
    """Why children are not as they should be without which the service serves."""
    cache: CacheState | None = None
    """The cache of a service whose model is downloaded before its pods start."""

    def deployment(self, service: LLMService) -> Object | None:
        """The workload, as last seen."""
        return self.children.get(("Deployment", service.metadata.name))


@dataclass(frozen=True)
class Replicas:
    """Counts of the Deployment."""

    wanted: int
    existing: int
    ready: int
    available: int
    updated: int
    is_current: bool
    """The counts are those of the newest template."""

    rolled_out: bool
    """All wanted replicas are of the newest template and serve, and no older one is left."""

    recreating: bool = False
    """A rollout by strategy Recreate is on its way: older replicas go before newer ones start."""

    @property
    def older(self) -> int:
        """Replicas of an older template."""
        return max(0, self.existing - self.updated)


def count_replicas(service: LLMService, deployment: Object | None) -> Replicas:
    """Counts; all zero but the wanted number before the Deployment exists."""
    if deployment is None:
        return Replicas(_first_replicas(service), 0, 0, 0, 0, False, False)
    spec, status = deployment["spec"], deployment.get("status") or {}
    wanted = spec.get("replicas", 1)
    existing, updated = status.get("replicas", 0), status.get("updatedReplicas", 0)
    available = status.get("availableReplicas", 0)
    is_current = status.get("observedGeneration", 0) >= deployment["metadata"].get("generation", 0)
    return Replicas(
        wanted=wanted,
        existing=existing,
        ready=status.get("readyReplicas", 0),
        available=available,
        updated=updated,
        is_current=is_current,
        rolled_out=is_current and existing == updated == available == wanted,
        recreating=_is_recreating(deployment, settled=is_current and existing == updated),
    )


def _first_replicas(service: LLMService) -> int:
    if service.spec.autoscaling is not None:
        return service.spec.autoscaling.first_replicas
    return 1 if service.spec.replicas is None else service.spec.replicas


def _is_recreating(deployment: Object, *, settled: bool) -> bool:
    """A first rollout stops nothing, and scaling up from zero is none at all."""
    if (deployment["spec"].get("strategy") or {}).get("type") != "Recreate":
        return False
    is_first = (deployment["metadata"].get("annotations") or {}).get(REVISION, "1") == "1"
    is_done = settled and _condition(deployment, "Progressing").get("reason") == "NewReplicaSetAvailable"
    return not is_first and not is_done


def fault_of(service: LLMService, observation: Observation) -> Fault | None:
    """Why the workload does not serve as wanted: the pods' own reasons first, then the Deployment's."""
    deployment = observation.deployment(service)
    if deployment is None:
        return None
    fault = pod_fault(service, observation.pods, template_hash(deployment["spec"]["template"]))
    refused = _condition(deployment, "ReplicaFailure")
    if fault is None and refused.get("status") == "True":
        fault = _refused_pods(str(refused.get("message", "")))
    if fault is not None and fault.reason == "ClaimPending":
        fault = Fault(fault.reason, claim_message(service, observation, fault.message), fault.needs_action)
    if fault is not None and service.spec.resources.gpu.resource_name in fault.lacking:
        fault = _without_spare_gpu(service, count_replicas(service, deployment), fault)
    if is_late(deployment):
        seconds = deployment["spec"].get("progressDeadlineSeconds")
        if fault is not None:
            return Fault(fault.reason, f"no progress for {seconds} s: {fault.message}", True)
        text = (
            f"the rollout has made no progress for {seconds} s, and its pods give no reason: see their Events, "
            "or raise spec.probes.startupSeconds if the model takes longer to load"
        )
        return Fault("ProgressDeadlineExceeded", text, True)
    return fault


def is_late(deployment: Object) -> bool:
    """Whether a rollout has made no progress until its deadline."""
    progressing = _condition(deployment, "Progressing")
    return progressing.get("reason") == "ProgressDeadlineExceeded" and progressing.get("status") == "False"


def _without_spare_gpu(service: LLMService, replicas: Replicas, fault: Fault) -> Fault:
    """Old pods keep their GPUs until a new one serves, which it cannot without one: a rollout that waits for itself."""
    rollout, gpu = service.spec.rollout, service.spec.resources.gpu.resource_name
    if replicas.older == 0 or rollout.strategy != "RollingUpdate" or str(rollout.max_surge) in ("0", "0%"):
        return fault
    held = replicas.older * service.spec.gpus_per_pod
    text = (
        f"a new pod must serve before an old one goes, and no node has {service.spec.gpus_per_pod} {gpu} free for it: "
        f"{replicas.older} older pods hold {held}. Wait until one is free, or have old pods make room: "
        "spec.rollout.maxSurge 0 with maxUnavailable 1 replaces one at a time, strategy Recreate all at once"
    )
    return Fault("NoGPUForSurge", text, False)


def _refused_pods(message: str) -> Fault:
    if "exceeded quota" in message:
        next_step = "Have the quota raised, or lower spec.resources or spec.replicas"
        return Fault("QuotaExceeded", f"{message}. {next_step}", False)
    if "violates PodSecurity" in message:
        return Fault("PodForbidden", f"{message}. Correct spec.podTemplate or the namespace's level", True)
    return Fault("FailedCreate", f"pods cannot be created: {message}", False)


def claim_message(service: LLMService, observation: Observation, message: str) -> str:
    """Why the cache's claim has no volume, in more words than the scheduler's where the claim is one of ours."""
    name = cache_claim_name(service)
    claim = observation.children.get(("PersistentVolumeClaim", name or ""))
    if claim is None:
        return f"{message}. `kubectl describe pvc -n {service.metadata.namespace}` says why"
    storage_class = claim["spec"].get("storageClassName")
    of_class = f"of storage class {storage_class}" if storage_class else "of no storage class, and there is no default"
    modes = ", ".join(claim["spec"].get("accessModes") or [])
    return (
        f"claim {name} ({of_class}, {modes}) has no volume yet: `kubectl describe pvc -n {service.metadata.namespace} "
        f"{name}` says why; set spec.cache.volume.storageClassName to a class that offers {modes}"
    )


def _condition(deployment: Object, kind: str) -> Mapping[str, Any]:
    for condition in (deployment.get("status") or {}).get("conditions") or []:
        if condition.get("type") == kind:
            return dict(condition)
    return {}
