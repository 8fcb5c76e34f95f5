"""When a rollout is stopped: its pods fail again and again, while older ones serve that would make room for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from quire_operator.api import LLMService
from quire_operator.builders.circumstances import Circumstances
from quire_operator.builders.deployment import progress_deadline
from quire_operator.builders.identity import Manifest, digest
from quire_operator.builders.pod import build_group_templates, build_pod_template
from quire_operator.builders.stopped_rollout import RETRY, StoppedRollout
from quire_operator.kubeapi.client import Object
from quire_operator.reconcile.faults import Fault, is_ready, pod_fault, template_hash
from quire_operator.reconcile.groups import leaders_of, serving_leaders
from quire_operator.reconcile.observation import Observation, groups_late_in, is_late
from quire_operator.reconcile.ownership import controller_of
from quire_operator.reconcile.workloads import REVISION, template_of

_RESTARTS = 3
"""The engine has then failed four times, over at least a minute of back-offs."""

_MAY_PASS = {"DownloadFailed", "HubUnreachable"}
"""The engine's reasons that are the network's: such pods are given until the deadline."""

_COUNTS = {"replicas", "autoscaling"}
"""Fields that say how many and not what."""


def still_stopped(service: LLMService, observation: Observation, circumstances: Circumstances) -> StoppedRollout | None:
    """The rollout that was stopped, for as long as the same would be tried again."""
    workload = observation.workload(service)
    stopped = StoppedRollout.of(workload) if workload is not None else None
    return stopped if stopped is not None and stopped.attempt == _attempt(service, circumstances) else None


def failed_rollout(service: LLMService, observation: Observation, circumstances: Circumstances) -> Fault | None:
    """Why the rollout has to be stopped; None while it may yet succeed, or has nothing to go back to."""
    workload = observation.workload(service)
    if workload is None or service.spec.suspend:
        return None
    newest = template_hash(template_of(workload))
    failed = _failed_groups if service.spec.parallelism.nodes > 1 else _failed_pods
    fault = failed(service, workload, observation, newest)
    if fault is None or not fault.needs_action:
        return None
    # what is failing may be a spec that was corrected just now
    return fault if newest == template_hash(_template(service, circumstances)) else None


def _failed_pods(service: LLMService, deployment: Object, observation: Observation, newest: str | None) -> Fault | None:
    pods = [pod for pod in observation.pods if not pod["metadata"].get("deletionTimestamp")]
    ours = [pod for pod in pods if template_hash(pod) == newest]
    if not any(is_ready(pod) for pod in pods if template_hash(pod) != newest):
        return None
    if any(is_ready(pod) and _restarts(pod) < _RESTARTS for pod in ours):
        return None  # what serves elsewhere is not wrong by itself
    fault = pod_fault(service, [pod for pod in ours if _restarts(pod) >= _RESTARTS], newest)
    if fault is None or fault.reason in _MAY_PASS:
        fault = pod_fault(service, ours, newest) if is_late(deployment) else None
    return fault


def _failed_groups(service: LLMService, groups: Object, observation: Observation, newest: str | None) -> Fault | None:
    """At the deadline alone: a group whose pod ends is made anew, so that no pod tells how often it has failed."""
    if groups_late_in(service, observation) != 0:
        return None
    leaders, size = leaders_of(groups, observation.pods), service.spec.parallelism.nodes
    serving = {template_hash(leader) for leader in serving_leaders(leaders, observation.pods, size)}
    ours = [pod for pod in observation.pods if template_hash(pod) == newest]
    if not serving or newest in serving or not any((pod.get("spec") or {}).get("nodeName") for pod in ours):
        return None
    text = f"no group of the newest spec has come to serve within {progress_deadline(service)} s"
    return pod_fault(service, ours, newest) or Fault("ProgressDeadlineExceeded", text, True)


def stop_rollout(
    service: LLMService,
    fault: Fault,
    observation: Observation,
    replica_sets: Iterable[Object],
    circumstances: Circumstances,
) -> StoppedRollout | None:
    """The rollout, stopped: the newest template of which pods serve takes its place. None when there is no such.

    Groups need none of `replica_sets`: LeaderWorkerSet knows which template served.
    """
    attempt, message = _attempt(service, circumstances), f"{fault.reason}: {fault.message}"
    if service.spec.parallelism.nodes > 1:
        return StoppedRollout(attempt, message, {})
    deployment = observation.workload(service)
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
    return StoppedRollout(attempt, message, template)


def _template(service: LLMService, circumstances: Circumstances) -> Manifest:
    """Of the pods that serve."""
    if service.spec.parallelism.nodes > 1:
        return build_group_templates(service, circumstances)[0]
    return build_pod_template(service, circumstances)


def _attempt(service: LLMService, circumstances: Circumstances) -> str:
    """Tells one try from another. How many replicas there are makes no difference, so that scaling tries nothing."""
    # without defaults, a field that a later operator knows is no other try
    spec = service.spec.model_dump(mode="json", exclude=_COUNTS, exclude_defaults=True)
    template = template_hash(_template(service, circumstances))
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
