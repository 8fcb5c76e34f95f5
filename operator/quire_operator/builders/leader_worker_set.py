"""The LeaderWorkerSet, where one replica is a group of pods on several nodes that live and die together."""

from __future__ import annotations

from quire_operator.api import LLMService
from quire_operator.builders.circumstances import Circumstances
from quire_operator.builders.identity import Manifest, child_metadata
from quire_operator.builders.pod import build_group_templates
from quire_operator.builders.stopped_rollout import ANNOTATION
from quire_operator.builders.workload import GROUP_SUFFIX

EXCLUSIVE_TOPOLOGY = "leaderworkerset.sigs.k8s.io/exclusive-topology"

_NO_GROUP = 1_000_000
"""A partition beyond any number of groups: all stay at the template that served, and more of them come as those are."""

_OF_SCHEDULERS = ("kueue.x-k8s.io/", "volcano.sh/", "scheduling.volcano.sh/", "scheduling.k8s.io/")
"""What labels and annotations of an LLMService begin with that speak to whoever starts groups as a whole."""


def build_leader_worker_set(service: LLMService, circumstances: Circumstances) -> Manifest | None:
    """NAME-nodes, where a replica is more than one pod; none while suspended.

    Without spec.replicas the count is left out, as in a Deployment. After a rollout that was stopped, the templates are
    those that failed, and no group is made of them: the ones that served are in revisions of LeaderWorkerSet's own.
    """
    spec = service.spec
    if spec.suspend or spec.parallelism.nodes == 1:
        return None
    leader, worker = build_group_templates(service, circumstances)
    body: Manifest = {
        "leaderWorkerTemplate": {
            "size": spec.parallelism.nodes,
            "leaderTemplate": leader,
            "workerTemplate": worker,
            # a rank that starts anew cannot join the others in the middle
            "restartPolicy": "RecreateGroupOnPodRestart",
        },
        "rolloutStrategy": {"type": "RollingUpdate", "rollingUpdateConfiguration": _rolling(service, circumstances)},
        # the leader serves only when its workers have joined it
        "startupPolicy": "LeaderCreated",
        "networkConfig": {"subdomainPolicy": "Shared"},
    }
    if spec.replicas is not None and not circumstances.scalers_leaving:
        body["replicas"] = spec.replicas
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": _metadata(service, circumstances),
        "spec": body,
    }


def _rolling(service: LLMService, circumstances: Circumstances) -> Manifest:
    rollout = service.spec.rollout
    if circumstances.stopped is not None:  # a group beyond the wanted ones would stay as it is
        return {"partition": _NO_GROUP, "maxSurge": 0, "maxUnavailable": 1}
    if rollout.strategy == "Recreate":  # which it knows by no name
        return {"maxSurge": 0, "maxUnavailable": "100%"}
    return {"maxSurge": rollout.max_surge, "maxUnavailable": rollout.max_unavailable}


def _metadata(service: LLMService, circumstances: Circumstances) -> Manifest:
    metadata, owner = child_metadata(service, GROUP_SUFFIX), service.metadata
    annotations = {key: value for key, value in owner.annotations.items() if key.startswith(_OF_SCHEDULERS)}
    if service.spec.parallelism.exclusive_topology is not None:
        annotations[EXCLUSIVE_TOPOLOGY] = service.spec.parallelism.exclusive_topology
    if circumstances.stopped is not None:
        annotations[ANNOTATION] = circumstances.stopped.annotation()
    if annotations:
        metadata["annotations"] = annotations
    own = {key: value for key, value in owner.labels.items() if key.startswith(_OF_SCHEDULERS)}
    return {**metadata, "labels": {**own, **metadata["labels"]}}
