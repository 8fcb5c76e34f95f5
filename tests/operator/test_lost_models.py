"""A model that was downloaded onto a claim, and is not there any more."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from quire_operator.builders.cached_model import Download
from quire_operator.kubeapi.resources import CLAIMS, EVENTS, PODS
from quire_operator.reconcile.lost_models import loss_of
from quire_operator.reconcile.prefetching import Seen
from tests.operator.api_client import Namespace, Object, eventually
from tests.operator.claims import jobs, make_claim
from tests.operator.operator_process import OperatorProcess
from tests.operator.prefetch_job import COMMIT, cached, complete, now, only_job, template, wanting

DOWNLOAD = Download("default", "models", "org/name", COMMIT)
WORDS = f"ModelNotCached: org/name at {COMMIT} is not in the cache"
NEWEST = "new"


def at(minute: float) -> str:
    moment = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(minutes=minute)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def job(attempt: int = 0, made: float = 0, done: float | None = 10) -> Object:
    condition = {"type": "Complete", "status": "True", "lastTransitionTime": at(done or 0)}
    annotations = {"serving.quire.dev/attempt": str(attempt)}
    metadata = {"name": DOWNLOAD.job_name, "creationTimestamp": at(made), "annotations": annotations}
    return {"metadata": metadata, "status": {"conditions": [condition] if done is not None else []}}


def pod(ended: float, words: str = WORDS, template: str = NEWEST, state: str = "lastState", **more: Any) -> Object:
    terminated = {"exitCode": 1, "message": words, "finishedAt": at(ended)}
    container = {"name": "engine", "ready": False, state: {"terminated": terminated}, **more}
    metadata = {"name": "llama-x", "annotations": {"serving.quire.dev/template-hash": template}}
    return {"metadata": metadata, "status": {"containerStatuses": [container]}}


def loss(seen: Object, *pods: Object, claim_made: float | None = None, newest: str | None = NEWEST) -> str | None:
    made = at(claim_made) if claim_made is not None else None
    return loss_of(DOWNLOAD, Seen(seen), made, pods, newest)


@pytest.mark.parametrize("state", ["state", "lastState"])
def test_a_pod_that_found_nothing_after_the_job_was_done_tells_of_a_loss(state: str) -> None:
    found = f"pod llama-x found no org/name at {COMMIT} on claim models"
    assert loss(job(), pod(12, state=state)) == f"{found}, though Job {DOWNLOAD.job_name} had brought it there"


def test_an_init_container_that_copies_from_the_claim_tells_too() -> None:
    copying = pod(12)
    copying["status"] = {"initContainerStatuses": copying["status"]["containerStatuses"]}
    assert loss(job(), copying)


@pytest.mark.parametrize(
    "silent",
    [
        pod(9),
        pod(10.5),  # storage on a network may show what is new a little later
        pod(12, "OutOfMemory: x"),
        pod(12, template="old"),
        pod(12, ready=True),
    ],
    ids=["before", "at once", "another fault", "another template", "serves since"],
)
def test_other_pods_tell_of_none(silent: Object) -> None:
    assert loss(job(), silent) is None


def test_a_download_under_way_and_one_without_a_workload_have_lost_nothing() -> None:
    assert loss(job(done=None), pod(12), claim_made=20) is None
    assert loss(job(), pod(12), newest=None) is None


def test_a_download_that_is_no_help_is_made_again_after_longer_and_longer() -> None:
    def first_minute(attempt: int) -> int:
        return next(minute for minute in range(1, 200) if loss(job(attempt), pod(10 + minute)))

    assert [first_minute(attempt) for attempt in (0, 1, 2, 3, 9)] == [2, 3, 5, 9, 61]


def test_a_claim_that_is_younger_than_what_was_downloaded_is_empty() -> None:
    assert loss(job(), claim_made=11) == f"claim models was made anew after org/name at {COMMIT} was downloaded onto it"
    assert loss(job(), claim_made=5) is None
    assert loss(job(), claim_made=0) is None


def test_the_job_that_follows_settles_the_matter_though_its_controllers_clock_is_slow() -> None:
    assert loss(job(made=12, done=2), claim_made=11) is None


def events(namespace: Namespace, reason: str) -> list[str]:
    return [event["message"] for event in namespace.api.list(EVENTS, namespace.name) if event["reason"] == reason]


def engine_pod(namespace: Namespace, name: str, ended: str) -> None:
    """A pod of the live template that found no model, as its kubelet would report it."""
    found = template(namespace)
    metadata = {**found["metadata"], "name": name, "namespace": namespace.name}
    containers = [{"name": "engine", "image": "quire/engine:test"}]
    namespace.api.create(
        PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": containers}}
    )
    words = WORDS.replace("org/name", "org/model")
    terminated = {"exitCode": 1, "reason": "Error", "message": words, "finishedAt": ended}
    status = {"name": "engine", "image": "x", "imageID": "", "ready": False, "restartCount": 1}
    waiting = {"waiting": {"reason": "CrashLoopBackOff"}}
    container = {**status, "state": waiting, "lastState": {"terminated": terminated}}
    namespace.api.set_status(PODS, namespace.name, name, {"phase": "Running", "containerStatuses": [container]})


def replaced(namespace: Namespace, before: Object) -> Object:
    def other() -> Object | None:
        found = jobs(namespace)
        return found[0] if found and found[0]["metadata"]["uid"] != before["metadata"]["uid"] else None

    # `eventually` returns only what is not None
    return eventually(other)  # type: ignore[return-value]


@pytest.mark.control_plane
def test_an_emptied_claim_is_filled_again_and_an_event_says_why(
    namespace: Namespace, operator: OperatorProcess
) -> None:
    make_claim(namespace)
    namespace.create(wanting())
    first = only_job(namespace)
    complete(namespace, first)
    eventually(lambda: template(namespace))
    before = template(namespace)
    later = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=2)).strftime("%Y-%m-%dT%H:%M:%SZ")
    engine_pod(namespace, "llama-x", later)

    second = replaced(namespace, first)
    (told,) = eventually(lambda: events(namespace, "DownloadedAgain"))
    assert told.startswith("pod llama-x found no org/model")
    assert told.endswith("it is downloaded again")
    assert second["metadata"]["annotations"]["serving.quire.dev/attempt"] == "1"
    cached(namespace, "llama", "Downloading")
    complete(namespace, second)
    cached(namespace, "llama", "Cached")
    # what the pod said is older now than what it is told to wait for
    operator.wait_until_idle()
    assert only_job(namespace)["metadata"]["uid"] == second["metadata"]["uid"]
    assert template(namespace) == before


@pytest.mark.control_plane
def test_a_claim_that_was_made_anew_is_filled_again_before_a_new_template_is_rolled_out(
    namespace: Namespace, operator: OperatorProcess
) -> None:
    namespace.create(wanting(cache={"volume": {"size": "1Gi"}}))
    first = only_job(namespace)
    complete(namespace, first)
    eventually(lambda: template(namespace))
    done = first["metadata"]["creationTimestamp"]
    eventually(lambda: now() > max(done, only_job(namespace)["status"]["completionTime"]))

    # nothing here takes the finalizer off that guards claims in use
    namespace.api.patch(CLAIMS, namespace.name, "llama-cache", {"metadata": {"finalizers": None}})
    namespace.api.delete(CLAIMS, namespace.name, "llama-cache")
    second = replaced(namespace, first)
    (told,) = eventually(lambda: events(namespace, "DownloadedAgain"))
    assert told.startswith("claim llama-cache was made anew")
    namespace.change("llama", {"engine": {"maxNumSeqs": 7}})
    assert cached(namespace, "llama", "Downloading")["status"] == "False"
    operator.wait_until_idle()
    assert "--max-num-seqs=7" not in template(namespace)["spec"]["containers"][0]["args"]
    complete(namespace, second)
    eventually(lambda: "--max-num-seqs=7" in template(namespace)["spec"]["containers"][0]["args"])
    operator.wait_until_idle()
    assert only_job(namespace)["metadata"]["uid"] == second["metadata"]["uid"]
