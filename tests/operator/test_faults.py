"""Reasons, from statuses as the kubelet and the scheduler of Kubernetes 1.34 write them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from quire_operator.reconcile.faults import pod_fault, prefetch_fault
from quire_operator.reconcile.observation import Observation, fault_of
from tests.operator.services import service

PULL_ERROR = (
    'rpc error: code = NotFound desc = failed to pull and unpack image "docker.io/does/not-exist:1": failed to resolve '
    'reference "docker.io/does/not-exist:1": docker.io/does/not-exist:1: not found'
)


def pod(
    container: dict[str, Any] | None = None, *, scheduled: str = "", name: str = "llama-x", hash_: str = "new"
) -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": "False"}]
    if scheduled:
        conditions.append({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": scheduled})
    status: dict[str, Any] = {"phase": "Pending", "conditions": conditions}
    if container is not None:
        status["containerStatuses"] = [{"name": "engine", "image": "does/not-exist:1", "ready": False, **container}]
    annotations = {"serving.quire.dev/template-hash": hash_}
    return {"metadata": {"name": name, "annotations": annotations}, "status": status}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"state": {"waiting": {"reason": reason, "message": message}}}


def died(message: str, reason: str = "Error", code: int = 1) -> dict[str, Any]:
    last = {"exitCode": code, "reason": reason, "message": message}
    return {
        **waiting("CrashLoopBackOff", "back-off 20s restarting failed container"),
        "lastState": {"terminated": last},
    }


def ran(seconds: int, code: int) -> dict[str, Any]:
    found = died("", code=code)
    begun = datetime(2026, 1, 1, tzinfo=UTC)
    for key, at in (("startedAt", begun), ("finishedAt", begun + timedelta(seconds=seconds))):
        found["lastState"]["terminated"][key] = at.strftime("%Y-%m-%dT%H:%M:%SZ")
    return found


CASES: dict[str, tuple[dict[str, Any], str, str, bool]] = {
    "image that does not exist": (
        pod(waiting("ErrImagePull", PULL_ERROR)),
        "ImagePullBackOff",
        "does/not-exist:1: not found. Check spec.engine.image",
        True,
    ),
    "image in back-off": (
        pod(waiting("ImagePullBackOff", f'Back-off pulling image "does/not-exist:1": ErrImagePull: {PULL_ERROR}')),
        "ImagePullBackOff",
        "cannot pull does/not-exist:1: rpc error",
        True,
    ),
    "image that is no name": (
        pod(waiting("InvalidImageName", 'Failed to apply default image tag "A B": couldn\'t parse image name')),
        "InvalidImageName",
        "correct spec.engine.image",
        True,
    ),
    "secret that is not there": (
        pod(waiting("CreateContainerConfigError", 'secret "hf-token" not found')),
        "CreateContainerConfigError",
        'secret "hf-token" not found. Create what is missing',
        True,
    ),
    "too little memory": (
        pod(died("", reason="OOMKilled", code=137)),
        "OOMKilled",
        "more than its 4Gi of memory: raise spec.resources.memory",
        True,
    ),
    "the engine's own reason": (
        pod(died("RevisionNotFound: org/name has no revision v9: write a branch that exists")),
        "RevisionNotFound",
        "org/name has no revision v9",
        True,
    ),
    "the end of a log": (
        pod(died("Traceback (most recent call last):\n  File x\nValueError: bad config\n")),
        "EngineFailed",
        "exited with code 1: ValueError: bad config. `kubectl logs -n default llama-x -c engine --previous`",
        True,
    ),
    "a program that ends without an error": (
        pod({"restartCount": 1, **died("", reason="Completed", code=0)}),
        "EngineFailed",
        "exited with code 0: it has nothing to run, or was stopped. `kubectl logs",
        True,
    ),
    "a program that ends without an error, as it does": (
        pod({"restartCount": 1, "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}),
        "EngineFailed",
        "exited with code 0",
        True,
    ),
    "a program that ends without an error, started again": (
        pod({"restartCount": 1, **died("", reason="Completed", code=0), "state": {"running": {}}}),
        "EngineFailed",
        "exited with code 0",
        True,
    ),
    "a load that is longer than the startup probe's patience": (
        pod({"restartCount": 1, **ran(1830, code=0)}),
        "EngineFailed",
        "It was stopped after 1830 s, and spec.probes.startupSeconds is 1800: raise that",
        True,
    ),
    "such a load by an engine that does not heed SIGTERM": (
        pod({"restartCount": 1, **ran(2013, code=137)}),
        "EngineFailed",
        "exited with code 137: no last word. It was stopped after 2013 s",
        True,
    ),
    "a silent death": (pod(died("", code=139)), "EngineFailed", "exited with code 139: no last word", True),
    "running again after a death": (
        pod({"state": {"running": {}}, "lastState": {"terminated": {"exitCode": 1, "message": "ModelNotFound: no x"}}}),
        "ModelNotFound",
        "no x",
        True,
    ),
    "a program that is not there": (
        pod(waiting("RunContainerError", 'exec: "quire-engine": executable file not found in $PATH')),
        "RunContainerError",
        "executable file not found",
        True,
    ),
    "no GPU": (
        pod(
            scheduled="0/3 nodes are available: 3 Insufficient nvidia.com/gpu. preemption: 0/3 nodes are available: "
            "3 No preemption victims found for incoming pod."
        ),
        "Unschedulable",
        "no node has 2 nvidia.com/gpu free",
        False,
    ),
    "no memory and no CPU": (
        pod(scheduled="0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient memory."),
        "Unschedulable",
        "no node has 2 cpu, 4Gi memory free",
        False,
    ),
    "a node selector that matches nothing": (
        pod(scheduled="0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector."),
        "Unschedulable",
        "Check spec.scheduling.nodeSelector (pool=large) and spec.resources.gpu.product (H100)",
        False,
    ),
    "a taint": (
        pod(scheduled="0/1 nodes are available: 1 node(s) had untolerated taint {a: b}."),
        "Unschedulable",
        "Add to spec.scheduling.tolerations",
        False,
    ),
    "a taint where the labels fit": (
        pod(
            scheduled="0/5 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, "
            "4 node(s) had untolerated taint {a: b}."
        ),
        "Unschedulable",
        "Check spec.scheduling.nodeSelector (pool=large) and spec.resources.gpu.product (H100); and add to "
        "spec.scheduling.tolerations",
        False,
    ),
    "no GPU where the labels fit": (
        pod(
            scheduled="0/4 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, "
            "3 Insufficient nvidia.com/gpu."
        ),
        "Unschedulable",
        "no node that admits pod llama-x has 2 nvidia.com/gpu free: 0/4 nodes",
        False,
    ),
    "a claim that does not exist": (
        pod(scheduled='0/1 nodes are available: persistentvolumeclaim "weights" not found.'),
        "ClaimNotFound",
        "waits for claim weights, which does not exist: create it",
        True,
    ),
    "a claim without a volume": (
        pod(scheduled="0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."),
        "ClaimPending",
        "waits for its claim",
        False,
    ),
    "no GPU where the claim finds a volume": (
        pod(
            scheduled="0/2 nodes are available: 1 Insufficient nvidia.com/gpu, "
            "1 node(s) didn't find available persistent volumes to bind."
        ),
        "Unschedulable",
        "no node has 2 nvidia.com/gpu free",
        False,
    ),
    "a claim whose volume is elsewhere": (
        pod(scheduled="0/2 nodes are available: 2 node(s) had volume node affinity conflict."),
        "Unschedulable",
        "Let pods run where their claim's volume is",
        False,
    ),
    "a claim whose volume somebody has to make": (
        pod(scheduled="0/1 nodes are available: 1 node(s) didn't find available persistent volumes to bind."),
        "ClaimPending",
        "waits for its claim",
        False,
    ),
}


@pytest.mark.parametrize(("found", "reason", "words", "needs_action"), CASES.values(), ids=CASES.keys())
def test_a_pods_status_is_put_in_words(found: dict[str, Any], reason: str, words: str, needs_action: bool) -> None:
    gpu = {"count": 2, "product": "H100"}
    selector = {"nodeSelector": {"pool": "large"}}
    owner = service(parallelism={"tensor": 2}, resources={"gpu": gpu}, scheduling=selector)
    fault = pod_fault(owner, [found], "new")
    assert fault is not None
    assert fault.reason == reason
    assert words in fault.message
    assert fault.needs_action is needs_action


@pytest.mark.parametrize("seconds", [1799, 9000])
def test_an_engine_that_fails_at_another_time_is_not_said_to_start_slowly(seconds: int) -> None:
    fault = pod_fault(service(), [pod({"restartCount": 1, **ran(seconds, code=1)})], "new")
    assert fault is not None
    assert "startupSeconds" not in fault.message


def test_starting_and_backing_off_say_the_same_so_that_nothing_flaps() -> None:
    words = 'failed to create containerd task: exec: "no-such-program": executable file not found in $PATH: unknown'
    starting = pod_fault(service(), [pod(waiting("RunContainerError", words))], "new")
    assert pod_fault(service(), [pod(died(words, reason="StartError", code=128))], "new") == starting


def test_a_download_that_is_done_has_no_fault() -> None:
    done = pod({"restartCount": 1, "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}})
    assert prefetch_fault("default", [done]) is None


def test_pulling_and_backing_off_say_the_same_so_that_nothing_flaps() -> None:
    pulling = pod_fault(service(), [pod(waiting("ErrImagePull", PULL_ERROR))], "new")
    backing_off = f'Back-off pulling image "does/not-exist:1": ErrImagePull: {PULL_ERROR}'
    assert pod_fault(service(), [pod(waiting("ImagePullBackOff", backing_off))], "new") == pulling


@pytest.mark.parametrize(
    "harmless",
    [
        pod(waiting("ContainerCreating")),
        pod({"state": {"running": {}}}),
        pod({"state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}),
        pod({"ready": True, "restartCount": 1, "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}),
        {**pod(died("x")), "metadata": {"name": "x", "deletionTimestamp": "2026-01-01T00:00:00Z"}},
        {"metadata": {"name": "x"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}},
    ],
)
def test_a_pod_that_starts_serves_or_goes_has_no_fault(harmless: dict[str, Any]) -> None:
    assert pod_fault(service(), [harmless], "new") is None


def test_the_newest_template_speaks_first() -> None:
    old, new = pod(died("OldReason: x"), name="a", hash_="old"), pod(died("NewReason: y"), name="b", hash_="new")
    fault = pod_fault(service(), [old, new], "new")
    assert fault is not None
    assert fault.reason == "NewReason"


def deployment(*conditions: dict[str, Any], older: int = 0) -> dict[str, Any]:
    return {
        "metadata": {"name": "llama", "generation": 1},
        "spec": {"progressDeadlineSeconds": 700, "template": {"metadata": {}}},
        "status": {"conditions": list(conditions), "replicas": older + 1, "updatedReplicas": 1},
    }


QUOTA = 'pods "llama-5c" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1, used: 4, limited: 4'
LATE = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}


def fault(*conditions: dict[str, Any], pods: tuple[dict[str, Any], ...] = (), older: int = 0, **spec: Any) -> Any:
    children = {("Deployment", "llama"): deployment(*conditions, older=older)}
    return fault_of(service(**spec), Observation(children, pods))


def test_a_quota_is_named_though_no_pod_exists() -> None:
    found = fault({"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": QUOTA})
    assert (found.reason, found.needs_action) == ("QuotaExceeded", False)
    assert "requests.nvidia.com/gpu=1" in found.message


def test_a_deadline_without_a_cause_says_so() -> None:
    found = fault(LATE)
    assert (found.reason, found.needs_action) == ("ProgressDeadlineExceeded", True)
    assert "700 s" in found.message


def test_a_deadline_with_a_cause_keeps_the_cause_and_makes_it_final() -> None:
    found = fault(LATE, pods=(pod(scheduled="0/3 nodes are available: 3 Insufficient nvidia.com/gpu."),))
    assert (found.reason, found.needs_action) == ("Unschedulable", True)
    assert found.message.startswith("no progress for 700 s: no node has 0 nvidia.com/gpu free")


NO_GPU = pod(scheduled="0/3 nodes are available: 3 Insufficient nvidia.com/gpu.")
TWO_GPUS = {"parallelism": {"tensor": 2}, "resources": {"gpu": {"count": 2}}}


def test_a_rollout_without_a_spare_gpu_is_said_with_the_choice() -> None:
    found = fault(pods=(NO_GPU,), older=3, **TWO_GPUS)
    assert (found.reason, found.needs_action) == ("NoGPUForSurge", False)
    assert "no node has 2 nvidia.com/gpu free for it: 3 older replicas hold 6" in found.message
    assert "Wait until one is free" in found.message
    assert "spec.rollout.maxSurge 0 with maxUnavailable 1" in found.message
    assert "strategy Recreate" in found.message


def test_after_the_deadline_a_rollout_without_a_spare_gpu_is_final() -> None:
    found = fault(LATE, pods=(NO_GPU,), older=3, **TWO_GPUS)
    assert (found.reason, found.needs_action) == ("NoGPUForSurge", True)


@pytest.mark.parametrize(
    ("older", "spec"),
    [
        (0, {}),
        (1, {"rollout": {"maxSurge": 0, "maxUnavailable": 1}}),
        (1, {"rollout": {"maxSurge": "0%", "maxUnavailable": 1}}),
        (1, {"rollout": {"strategy": "Recreate"}}),
    ],
    ids=["a first pod, or one more", "no surge", "no share as surge", "all at once"],
)
def test_a_pod_that_is_no_surge_lacks_a_gpu_as_any_other(older: int, spec: dict[str, Any]) -> None:
    assert fault(pods=(NO_GPU,), older=older, **TWO_GPUS, **spec).reason == "Unschedulable"


def test_a_surge_that_lacks_memory_does_not_blame_the_gpus() -> None:
    found = fault(pods=(pod(scheduled="0/1 nodes are available: 1 Insufficient memory."),), older=1, **TWO_GPUS)
    assert found.reason == "Unschedulable"


def test_a_pending_claim_of_ours_is_named_with_its_class() -> None:
    claim = {"spec": {"storageClassName": "fast", "accessModes": ["ReadWriteMany"]}}
    children = {("Deployment", "llama"): deployment(), ("PersistentVolumeClaim", "llama-cache"): claim}
    owner = service(model={"source": "hf://a/b"}, cache={"volume": {"size": "1Gi"}})
    pods = (pod(scheduled="0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."),)
    found = fault_of(owner, Observation(children, pods))
    assert found is not None
    assert "claim llama-cache (of storage class fast, ReadWriteMany) has no volume yet" in found.message
