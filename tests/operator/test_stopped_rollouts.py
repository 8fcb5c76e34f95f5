"""Which rollouts are stopped, and what is gone back to. The controllers' part is in test_rollouts.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from quire_operator.api import LLMService, Spec
from quire_operator.builders.circumstances import Circumstances
from quire_operator.builders.deployment import build_deployment
from quire_operator.builders.leader_worker_set import build_leader_worker_set
from quire_operator.builders.stopped_rollout import StoppedRollout
from quire_operator.reconcile.faults import template_hash
from quire_operator.reconcile.observation import Observation
from quire_operator.reconcile.rollouts import failed_rollout, still_stopped, stop_rollout
from tests.operator.services import CIRCUMSTANCES, service

OLD = {"annotations": {"serving.quire.dev/template-hash": "old"}}
SERVES = {"conditions": [{"type": "Ready", "status": "True"}]}
LATE = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}


def live(owner: LLMService, *conditions: dict[str, Any]) -> Any:
    """The Deployment as it is, asked for what `owner` asks."""
    built = build_deployment(owner, CIRCUMSTANCES)
    assert built is not None
    built["metadata"] |= {"uid": "d", "generation": 2}
    return {**built, "status": {"conditions": list(conditions)}}


def pod(owner: LLMService, restarts: int = 0, words: str = "ModelNotFound: no such", *, ready: bool = False) -> Any:
    """One of the newest template."""
    last = {"lastState": {"terminated": {"exitCode": 1, "message": words}}} if restarts else {}
    container = {"name": "engine", "ready": ready, "restartCount": restarts, **last}
    annotations = live(owner)["spec"]["template"]["metadata"]["annotations"]
    status = {"containerStatuses": [container], **(SERVES if ready else {})}
    return {"metadata": {"name": f"new-{restarts}", "annotations": annotations}, "status": status}


def ended(restarts: int) -> Any:
    """One whose engine ends without an error, as when it is stopped while it loads."""
    found = pod(NEW, restarts)
    found["status"]["containerStatuses"][0]["lastState"]["terminated"] = {"exitCode": 0, "reason": "Completed"}
    return found


def old(*, ready: bool = True, leaving: bool = False) -> Any:
    going = {"deletionTimestamp": "2026-01-01T00:00:00Z"} if leaving else {}
    return {"metadata": {"name": "old", **OLD, **going}, "status": SERVES if ready else {}}


def failed(owner: LLMService, *pods: Any, deployment: Any = None, late: bool = False) -> str | None:
    workload = deployment or live(owner, *([LATE] if late else []))
    fault = failed_rollout(owner, Observation({("Deployment", "llama"): workload}, pods), CIRCUMSTANCES)
    return fault.reason if fault is not None else None


NEW = service()
PULLING = pod(NEW)
PULLING["status"]["containerStatuses"][0]["state"] = {"waiting": {"reason": "ImagePullBackOff", "message": "x"}}
PENDING = pod(NEW)
PENDING["status"]["conditions"] = [
    {"type": "PodScheduled", "reason": "Unschedulable", "message": "1 Insufficient nvidia.com/gpu."}
]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (failed(NEW, old(), pod(NEW, 3)), "ModelNotFound"),
        (failed(NEW, old(), pod(NEW, 2)), None),
        (failed(NEW, old(), pod(NEW, 3), pod(NEW, ready=True)), None),
        (failed(NEW, old(), pod(NEW, 3), pod(NEW, 4, ready=True)), "ModelNotFound"),
        (failed(NEW, pod(NEW, 3)), None),
        (failed(NEW, old(ready=False), pod(NEW, 3)), None),
        (failed(NEW, old(leaving=True), pod(NEW, 3)), None),
        (failed(NEW, old(), pod(NEW, 9, "DownloadFailed: no answer")), None),
        (failed(NEW, old(), pod(NEW, 9, "DownloadFailed: no answer"), late=True), "DownloadFailed"),
        (failed(NEW, old(), ended(3)), "EngineFailed"),
        (failed(NEW, old(), ended(1)), None),
        (failed(NEW, old(), ended(1), late=True), "EngineFailed"),
        (failed(NEW, old(), PULLING), None),
        (failed(NEW, old(), PULLING, late=True), "ImagePullBackOff"),
        (failed(NEW, old(), PENDING, late=True), None),
        (failed(service(engine={"maxNumSeqs": 9}), old(), pod(NEW, 3), deployment=live(NEW)), None),
        (failed(service(suspend=True), old(), pod(NEW, 3), deployment=live(NEW)), None),
    ],
    ids=[
        "one that fails again and again",
        "one that has failed a few times",
        "another one serves",
        "what serves has failed as often",
        "nothing older",
        "nothing older serves",
        "what is older leaves",
        "a hub that is away",
        "a hub that is away for long",
        "one that ends without an error again and again",
        "one that has ended once, and may load yet",
        "one that does not load in time",
        "an image that may be pushed yet",
        "an image that is not there for long",
        "a GPU that may become free",
        "a spec that was corrected just now",
        "suspended",
    ],
)
def test_a_rollout_is_stopped_by(found: str | None, expected: str | None) -> None:
    assert found == expected


PAIRS: dict[str, Any] = {
    "engine": {"type": "custom", "image": "registry.example/engine:1", "command": ["serve"]},
    "parallelism": {"nodes": 2},
    "resources": {"gpu": {"count": 0}},
    "rollout": {"progressDeadlineSeconds": 100},
}
GROUPS = ("LeaderWorkerSet", "llama-nodes")


def live_groups(owner: LLMService, circumstances: Circumstances = CIRCUMSTANCES) -> Any:
    """As our last change of them left them, at the beginning of 1970."""
    built = build_leader_worker_set(owner, circumstances)
    assert built is not None
    return {**built, "status": {"replicas": 2}, "appliedAt": "1970-01-01T00:00:00Z"}


def group(owner: LLMService, index: int, *, old: bool, ready: bool, node: bool = True, words: str = "") -> list[Any]:
    """A leader and its worker."""
    parts, found = live_groups(owner)["spec"]["leaderWorkerTemplate"], []
    for kind in ("leader", "worker"):
        metadata = parts[f"{kind}Template"]["metadata"]
        labels = {"leaderworkerset.sigs.k8s.io/name": GROUPS[1], "leaderworkerset.sigs.k8s.io/group-index": str(index)}
        annotations = OLD["annotations"] if old else metadata["annotations"]
        identity = {"name": f"{kind}-{index}", "labels": {**metadata["labels"], **labels}, "annotations": annotations}
        last = {"lastState": {"terminated": {"exitCode": 4, "message": words}}} if words else {}
        status = {"containerStatuses": [{"name": "engine", "ready": ready, **last}]}
        ready_since = [{"type": "Ready", "status": str(ready), "lastTransitionTime": "1970-01-01T00:00:01Z"}]
        spec = {"nodeName": "one"} if node else {}
        found.append({"metadata": identity, "spec": spec, "status": {**status, "conditions": ready_since}})
    return found


PAIR = service(**PAIRS)


def failed_groups(*pods: Any, now: float = 1000, asked: LLMService = PAIR) -> Any:
    observation = Observation({GROUPS: live_groups(PAIR)}, list(pods), now=now)
    return failed_rollout(asked, observation, CIRCUMSTANCES)


SERVING = group(PAIR, 0, old=True, ready=True)
FAILING = group(PAIR, 2, old=False, ready=False, words="no memory")


def test_groups_that_do_not_come_to_serve_stop_their_rollout_at_the_deadline() -> None:
    found = failed_groups(*SERVING, *FAILING)
    assert found.reason == "EngineFailed"
    assert "exited with code 4: no memory" in found.message
    made_anew = failed_groups(*SERVING, *group(PAIR, 2, old=False, ready=False))
    assert (made_anew.reason, "within 100 s" in made_anew.message) == ("ProgressDeadlineExceeded", True)


@pytest.mark.parametrize(
    "found",
    [
        failed_groups(*SERVING, *FAILING, now=50),
        failed_groups(*FAILING),
        failed_groups(*group(PAIR, 0, old=True, ready=False), *FAILING),
        failed_groups(SERVING[0], *FAILING),
        failed_groups(*SERVING, *FAILING, *group(PAIR, 1, old=False, ready=True)),
        failed_groups(*SERVING),
        failed_groups(*SERVING, *group(PAIR, 2, old=False, ready=False, node=False)),
        failed_groups(*SERVING, *FAILING, asked=service(**PAIRS | {"parallelism": {"nodes": 3}})),
    ],
    ids=[
        "before the deadline",
        "nothing older",
        "nothing older serves",
        "what is older has lost its worker",
        "another one serves",
        "none may begin",
        "one that waits for nodes",
        "a spec that was corrected just now",
    ],
)
def test_no_rollout_of_groups_is_stopped_by(found: Any) -> None:
    assert found is None


def test_groups_of_a_stopped_rollout_stay_at_what_served_until_the_spec_is_changed() -> None:
    fault = failed_groups(*SERVING, *FAILING)
    observation = Observation({GROUPS: live_groups(PAIR)}, [*SERVING, *FAILING], now=1000)
    found = stop_rollout(PAIR, fault, observation, [], CIRCUMSTANCES)
    assert found is not None
    held = live_groups(PAIR, replace(CIRCUMSTANCES, stopped=found))
    rolling = held["spec"]["rolloutStrategy"]["rollingUpdateConfiguration"]
    assert rolling == {"partition": 1_000_000, "maxSurge": 0, "maxUnavailable": 1}
    assert held["spec"]["leaderWorkerTemplate"] == live_groups(PAIR)["spec"]["leaderWorkerTemplate"]

    observed = Observation({GROUPS: held})
    assert still_stopped(PAIR, observed, CIRCUMSTANCES) == found
    assert still_stopped(service(**PAIRS, replicas=5), observed, CIRCUMSTANCES) == found
    engine = {**PAIRS["engine"], "image": "registry.example/engine:2"}
    assert still_stopped(service(**PAIRS | {"engine": engine}), observed, CIRCUMSTANCES) is None
    assert "partition" not in live_groups(PAIR)["spec"]["rolloutStrategy"]["rollingUpdateConfiguration"]


def replica_set(revision: int, ready: int, *, hash_: str = "old", owner: str = "d") -> dict[str, Any]:
    annotations = {"serving.quire.dev/template-hash": hash_}
    labels = {"app.kubernetes.io/component": "engine", "pod-template-hash": "5c"}
    return {
        "metadata": {
            "annotations": {"deployment.kubernetes.io/revision": str(revision)},
            "ownerReferences": [{"controller": True, "uid": owner}],
        },
        "spec": {"template": {"metadata": {"annotations": annotations, "labels": labels}, "spec": {"of": revision}}},
        "status": {"readyReplicas": ready},
    }


def stopped(owner: LLMService, *replica_sets: dict[str, Any]) -> StoppedRollout | None:
    observation = Observation({("Deployment", "llama"): live(owner)}, [old(), pod(owner, 3)])
    fault = failed_rollout(owner, observation, CIRCUMSTANCES)
    assert fault is not None
    return stop_rollout(owner, fault, observation, replica_sets, CIRCUMSTANCES)


def test_the_newest_template_that_serves_takes_the_place_of_the_one_that_fails() -> None:
    failing = template_hash(live(NEW)["spec"]["template"]) or ""
    found = stopped(
        NEW,
        replica_set(3, 1),
        replica_set(10, 1),
        replica_set(11, 0),
        replica_set(12, 1, hash_=failing),
        replica_set(13, 1, owner="a stranger"),
    )
    assert found is not None
    assert found.message == "ModelNotFound: pod new-3: no such"
    assert found.template["spec"] == {"of": 10}
    assert found.template["metadata"]["labels"] == {"app.kubernetes.io/component": "engine"}


def test_without_a_template_that_serves_nothing_is_stopped() -> None:
    assert stopped(NEW, replica_set(1, 0)) is None


@pytest.mark.parametrize(
    ("change", "holds"),
    [
        ({}, True),
        ({"replicas": 7}, True),
        ({"engine": {"maxNumSeqs": 9}}, False),
        ({"cache": {"volume": {"size": "9Gi"}}}, False),
    ],
    ids=["the same", "a number of replicas", "another pod", "a larger claim"],
)
def test_a_stop_holds_until_something_else_is_tried(change: dict[str, Any], holds: bool) -> None:
    source = {"source": "hf://org/name"}
    before = service(model=source, cache={"volume": {"size": "1Gi"}})
    stop = stopped(before, replica_set(1, 1))
    assert stop is not None
    deployment = live(before)
    deployment["metadata"]["annotations"] = {"serving.quire.dev/stopped-rollout": stop.annotation()}
    after = service(model=source, **{"cache": {"volume": {"size": "1Gi"}}, **change})
    found = still_stopped(after, Observation({("Deployment", "llama"): deployment}), CIRCUMSTANCES)
    assert found == (stop if holds else None)


class LaterSpec(Spec):
    """As an operator after this one knows it."""

    novel: int | None = None


def test_a_stop_outlives_an_operator_that_knows_one_more_field() -> None:
    stop = stopped(NEW, replica_set(1, 1))
    assert stop is not None
    deployment = live(NEW)
    deployment["metadata"]["annotations"] = {"serving.quire.dev/stopped-rollout": stop.annotation()}
    spec = LaterSpec.model_validate(NEW.spec.model_dump(by_alias=True, exclude_unset=True))
    later = NEW.model_copy(update={"spec": spec})
    assert still_stopped(later, Observation({("Deployment", "llama"): deployment}), CIRCUMSTANCES) == stop


@pytest.mark.parametrize("text", ["", "{", "[]", '{"attempt": "x"}'])
def test_an_annotation_that_is_not_ours_stops_nothing(text: str) -> None:
    assert StoppedRollout.of({"metadata": {"annotations": {"serving.quire.dev/stopped-rollout": text}}}) is None
