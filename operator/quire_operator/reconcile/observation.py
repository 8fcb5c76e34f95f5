"""What is there of an LLMService, as numbers and faults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from quire_operator.api import LLMService
from quire_operator.builders.circumstances import Capabilities
from quire_operator.builders.claim import cache_claim_name
from quire_operator.builders.scaling import Obstacle
from quire_operator.builders.stopped_rollout import StoppedRollout
from quire_operator.kubeapi.client import Object
from quire_operator.reconcile.changes import ChildKey
from quire_operator.reconcile.children import Problem
from quire_operator.reconcile.environment import Environment
from quire_operator.reconcile.faults import Fault, pod_fault, template_hash
from quire_operator.reconcile.prefetching import CacheState
from quire_operator.reconcile.replicas import Replicas, count_replicas
from quire_operator.reconcile.workloads import condition, template_of, workload_key

NOTHING_KNOWN = Environment()


@dataclass(frozen=True)
class Observation:
    """The state of the children at one moment."""

    children: Mapping[ChildKey, Object] = field(default_factory=dict)
    pods: Sequence[Object] = ()
    capabilities: Capabilities = field(default_factory=Capabilities)
    stopped: StoppedRollout | None = None
    """The rollout that was stopped, while the spec asks for it."""

    scaling_obstacle: Obstacle | None = None
    """Why there is no scaler though the spec asks for one, or one that was deleted still is."""

    aside: Mapping[ChildKey, Problem] = field(default_factory=dict)
    """Why children are not as they should be without which the service serves."""
    cache: CacheState | None = None
    """The cache of a service whose model is downloaded before its pods start."""

    environment: Environment = NOTHING_KNOWN
    """What the service finds in its namespace."""

    def workload(self, service: LLMService) -> Object | None:
        """What runs the engines, as last seen."""
        return self.children.get(workload_key(service))

    def replicas(self, service: LLMService) -> Replicas:
        """Counts of it."""
        return count_replicas(service, self.children, self.pods)


def fault_of(service: LLMService, observation: Observation) -> Fault | None:
    """Why the workload does not serve as wanted: the pods' own reasons first, then its controller's."""
    workload = observation.workload(service)
    if workload is None:
        return None
    fault = pod_fault(service, observation.pods, template_hash(template_of(workload)))
    refused = condition(workload, "ReplicaFailure")
    if fault is None and refused.get("status") == "True":
        fault = _refused_pods(str(refused.get("message", "")))
    if fault is not None and fault.reason == "ClaimPending":
        fault = Fault(fault.reason, claim_message(service, observation, fault.message), fault.needs_action)
    if fault is not None and service.spec.resources.gpu.resource_name in fault.lacking:
        fault = _without_spare_gpu(service, observation.replicas(service), fault)
    if is_late(workload):
        seconds = workload["spec"].get("progressDeadlineSeconds")
        if fault is not None:
            return Fault(fault.reason, f"no progress for {seconds} s: {fault.message}", True)
        text = (
            f"the rollout has made no progress for {seconds} s, and its pods give no reason: see their Events, "
            "or raise spec.probes.startupSeconds if the model takes longer to load"
        )
        return Fault("ProgressDeadlineExceeded", text, True)
    return fault


def is_late(workload: Object) -> bool:
    """Whether a rollout has made no progress until its deadline. LeaderWorkerSet knows of none."""
    progressing = condition(workload, "Progressing")
    return progressing.get("reason") == "ProgressDeadlineExceeded" and progressing.get("status") == "False"


def _without_spare_gpu(service: LLMService, replicas: Replicas, fault: Fault) -> Fault:
    """Old pods keep their GPUs until a new one serves, which it cannot without one: a rollout that waits for itself."""
    rollout, gpu = service.spec.rollout, service.spec.resources.gpu.resource_name
    if replicas.older == 0 or rollout.strategy != "RollingUpdate" or str(rollout.max_surge) in ("0", "0%"):
        return fault
    held = replicas.older * service.spec.gpus_per_pod * service.spec.parallelism.nodes
    text = (
        f"a new pod must serve before an old one goes, and no node has {service.spec.gpus_per_pod} {gpu} free for it: "
        f"{replicas.older} older replicas hold {held}. Wait until one is free, or have old pods make room: "
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
