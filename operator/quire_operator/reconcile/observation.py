"""What is there of an LLMService, as numbers and faults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from quire_operator.api import LLMService
from quire_operator.builders.circumstances import Capabilities
from quire_operator.builders.claim import cache_claim_name
from quire_operator.builders.deployment import progress_deadline
from quire_operator.builders.scaling import Obstacle
from quire_operator.builders.stopped_rollout import StoppedRollout
from quire_operator.kubeapi.client import Object
from quire_operator.kubeapi.resources import CLAIMS
from quire_operator.reconcile.cache_state import CacheState
from quire_operator.reconcile.changes import ChildKey
from quire_operator.reconcile.children import Problem
from quire_operator.reconcile.environment import Environment
from quire_operator.reconcile.faults import Fault, pod_fault, template_hash
from quire_operator.reconcile.groups import as_group, last_progress
from quire_operator.reconcile.replicas import Replicas, count_replicas
from quire_operator.reconcile.workloads import condition, predecessor, template_of, workload_key

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

    now: float = 0.0
    """Seconds since the epoch."""

    def workload(self, service: LLMService) -> Object | None:
        """What runs the engines, as last seen."""
        return self.children.get(workload_key(service))

    def replicas(self, service: LLMService) -> Replicas:
        """Counts of it."""
        return count_replicas(service, self.children, self.pods)

    def claim_size(self, service: LLMService) -> str | None:
        """What the cache's claim asks for; None where it is not one of ours, or not there yet."""
        claim = self.children.get((CLAIMS.kind, cache_claim_name(service) or ""))
        return str(claim["spec"]["resources"]["requests"]["storage"]) if claim is not None else None

    def claim_made(self, service: LLMService) -> str | None:
        """When the cache's claim was created, where that is known."""
        claim = self.children.get((CLAIMS.kind, cache_claim_name(service) or ""))
        if claim is not None:
            return str(claim["metadata"]["creationTimestamp"])
        return self.environment.claim.made if self.environment.claim is not None else None


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
    if fault is not None and fault.pod:
        fault = _without_node(service, observation, fault)
    if fault is None and predecessor(service, observation.children) is None:
        fault = _lone_group(service, observation.replicas(service))
    if is_late(workload) or groups_late_in(service, observation) == 0:
        seconds = workload["spec"].get("progressDeadlineSeconds") or progress_deadline(service)
        if fault is not None:
            return Fault(fault.reason, f"no progress for {seconds} s: {fault.message}", True)
        text = (
            f"the rollout has made no progress for {seconds} s, and its pods give no reason: see their Events, "
            "or raise spec.probes.startupSeconds if the model takes longer to load"
        )
        if service.spec.parallelism.nodes > 1:
            text += ". A group whose pod ends is made anew with all its pods: follow their logs to see one end"
        return Fault("ProgressDeadlineExceeded", text, True)
    return fault


def is_late(workload: Object) -> bool:
    """Whether a rollout has made no progress until its deadline. LeaderWorkerSet knows of none."""
    progressing = condition(workload, "Progressing")
    return progressing.get("reason") == "ProgressDeadlineExceeded" and progressing.get("status") == "False"


def groups_late_in(service: LLMService, observation: Observation) -> float | None:
    """Seconds after which groups that make no progress are late, 0 when they are; None where nothing is waited for."""
    groups = observation.workload(service)
    if groups is None or service.spec.parallelism.nodes == 1:
        return None
    replicas = observation.replicas(service)
    if replicas.rolled_out or (replicas.ready and not replicas.older):
        return None  # more of what serves is wanted: a matter of load and of free nodes
    return max(0.0, last_progress(groups, observation.pods) + progress_deadline(service) - observation.now)


def _without_node(service: LLMService, observation: Observation, fault: Fault) -> Fault:
    """Old pods keep their GPUs until a new one serves, which it cannot without one: a rollout that waits for itself."""
    rollout, gpu = service.spec.rollout, service.spec.resources.gpu.resource_name
    replicas, size = observation.replicas(service), service.spec.parallelism.nodes
    surges = rollout.strategy == "RollingUpdate" and str(rollout.max_surge) not in ("0", "0%")
    if gpu not in fault.lacking or replicas.older == 0 or not surges:
        return as_group(service, observation.pods, fault)
    each, what = service.spec.gpus_per_pod, "pod" if size == 1 else "group"
    text = (
        f"a new {what} must serve before an old one goes, and no node has {each} {gpu} free for "
        f"{'it' if size == 1 else f'each of its {size} pods'}: {replicas.older} older replicas hold "
        f"{replicas.older * each * size}. Wait until {'one is' if size == 1 else 'they are'} free, or have old {what}s "
        "make room: spec.rollout.maxSurge 0 with maxUnavailable 1 replaces one at a time, strategy Recreate all at once"
    )
    return Fault("NoGPUForSurge", text, False)


def _lone_group(service: LLMService, replicas: Replicas) -> Fault | None:
    """LeaderWorkerSet 0.8 starts no second group beside a single one, whatever maxSurge says, and so waits for ever."""
    rollout = service.spec.rollout
    lone = replicas.wanted == replicas.existing == replicas.older == 1
    most = rollout.max_unavailable
    may_go = most == "100%" if isinstance(most, str) else most > 0  # a smaller share of one is none
    if service.spec.parallelism.nodes == 1 or not lone or rollout.strategy == "Recreate" or may_go:
        return None
    text = (
        "LeaderWorkerSet starts no second group beside a single one, which spec.rollout.maxUnavailable keeps until "
        "another serves: write maxUnavailable 1, and nothing serves while the new group loads, or spec.replicas 2"
    )
    return Fault("NoSurgeOfOneGroup", text, True)


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
    claim = observation.children.get((CLAIMS.kind, name or ""))
    if claim is None:
        return f"{message}. `kubectl describe pvc -n {service.metadata.namespace}` says why"
    storage_class = claim["spec"].get("storageClassName")
    of_class = f"of storage class {storage_class}" if storage_class else "of no storage class, and there is no default"
    modes = ", ".join(claim["spec"].get("accessModes") or [])
    return (
        f"claim {name} ({of_class}, {modes}) has no volume yet: `kubectl describe pvc -n {service.metadata.namespace} "
        f"{name}` says why; set spec.cache.volume.storageClassName to a class that offers {modes}"
    )
