"""When a rollout is stopped: its pods fail again and again, while older ones serve that would make room for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from quire_operator.api import LLMService
from quire_operator.builders.circumstances import Circumstances
from quire_operator.builders.identity import Manifest, digest
from quire_operator.builders.pod import build_pod_template
from quire_operator.builders.stopped_rollout import RETRY, StoppedRollout
from quire_operator.kubeapi.client import Object
from quire_operator.reconcile.faults import Fault, is_ready, pod_fault, template_hash
from quire_operator.reconcile.observation import Observation, is_late
from quire_operator.reconcile.ownership import controller_of
from quire_operator.reconcile.workloads import REVISION

_RESTARTS = 3
"""The engine has then failed four times, over at least a minute of back-offs."""

_MAY_PASS = {"DownloadFailed", "HubUnreachable"}
"""The engine's reasons that are the network's: such pods are given until the deadline."""

_COUNTS = {"replicas", "autoscaling"}
"""Fields that say how many and not what."""


def still_stopped(service: LLMService, observation: Observation, circumstances: Circumstances) -> StoppedRollout | None:
    """The rollout that was stopped, for as long as the same would be tried again."""
    deployment = _deployment(service, observation)
    stopped = StoppedRollout.of(deployment) if deployment is not None else None
    return stopped if stopped is not None and stopped.attempt == _attempt(service, circumstances) else None


def failed_rollout(service: LLMService, observation: Observation, circumstances: Circumstances) -> Fault | None:
    """Why the rollout has to be stopped; None while it may yet succeed, or has nothing to go back to."""
    deployment = _deployment(service, observation)
    if deployment is None or service.spec.suspend:
        return None
    newest = template_hash(deployment["spec"]["template"])
    pods = [pod for pod in observation.pods if not pod["metadata"].get("deletionTimestamp")]
    ours = [pod for pod in pods if template_hash(pod) == newest]
    if not any(is_ready(pod) for pod in pods if template_hash(pod) != newest):
        return None
    if any(is_ready(pod) and _restarts(pod) < _RESTARTS for pod in ours):
        return None  # what serves elsewhere is not wrong by itself
    fault = pod_fault(service, [pod for pod in ours if _restarts(pod) >= _RESTARTS], newest)
    if fault is None or fault.reason in _MAY_PASS:
        fault = pod_fault(service, ours, newest) if is_late(deployment) else None
    if fault is None or not fault.needs_action:
        return None
    # what is failing may be a spec that was corrected just now
    return fault if newest == template_hash(build_pod_template(service, circumstances)) else None


def stop_rollout(
    service: LLMService,
    fault: Fault,
    observation: Observation,
    replica_sets: Iterable[Object],
    circumstances: Circumstances,
) -> StoppedRollout | None:
    """The rollout, stopped: the newest template of which pods serve takes its place. None when there is no such."""
    deployment = _deployment(service, observation)
    if deployment is None:
        return None
    failing = template_hash(deployment["spec"]["template"])
    serving = [
        item
        for item in replica_sets
        if (controller_of(item) or {}).get("uid") == deployment["metadata"]["uid"]
        and (item.get("status") or {}).get("readyReplicas")
        and template_hash(item["spec"]["template"]) != failing
    ]
    if not serving:
        return None
    template = _as_deployed(max(serving, key=_revision)["spec"]["template"])
    return StoppedRollout(_attempt(service, circumstances), f"{fault.reason}: {fault.message}", template)


def _deployment(service: LLMService, observation: Observation) -> Object | None:
    """Groups of pods are left to LeaderWorkerSet, which keeps no template that another may ask for."""
    return observation.workload(service) if service.spec.parallelism.nodes == 1 else None


def _attempt(service: LLMService, circumstances: Circumstances) -> str:
    """Tells one try from another. How many replicas there are makes no difference, so that scaling tries nothing."""
    # without defaults, a field that a later operator knows is no other try
    spec = service.spec.model_dump(mode="json", exclude=_COUNTS, exclude_defaults=True)
    template = template_hash(build_pod_template(service, circumstances))
    return digest([spec, template, service.metadata.annotations.get(RETRY)])


def _restarts(pod: Object) -> int:
    statuses = [*(pod["status"].get(kind) or [] for kind in ("containerStatuses", "initContainerStatuses"))]
    return max((int(status.get("restartCount") or 0) for several in statuses for status in several), default=0)


def _revision(replica_set: Object) -> int:
    return int((replica_set["metadata"].get("annotations") or {}).get(REVISION) or 0)


def _as_deployed(template: Mapping[str, Any]) -> Manifest:
    """The template as the Deployment had it, without what its controller adds for the ReplicaSet."""
    metadata = {key: value for key, value in template["metadata"].items() if key != "creationTimestamp"}
    labels = {key: value for key, value in metadata["labels"].items() if key != "pod-template-hash"}
    return {**template, "metadata": {**metadata, "labels": labels}}
