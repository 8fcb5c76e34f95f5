"""The download of a model before its pods start, with the real operator and API server."""

from __future__ import annotations

from http.server import ThreadingHTTPServer
from typing import Any

import pytest

from quire_operator.kubeapi.resources import CLAIMS, DEPLOYMENTS, EVENTS, JOBS, LLMSERVICES, PODS, SERVICES
from tests.operator.api_client import Namespace, Object, eventually
from tests.operator.claims import jobs, make_claim
from tests.operator.hub import on_hub
from tests.operator.operator_process import OperatorProcess
from tests.operator.prefetch_job import (
    CLAIM,
    COMMIT,
    add_pod,
    cached,
    complete,
    ended,
    fail,
    job_for,
    only_job,
    owners,
    template,
    wanting,
)

pytestmark = pytest.mark.control_plane


@pytest.fixture
def namespace(namespace: Namespace) -> Namespace:
    """A namespace with the claim `models`."""
    make_claim(namespace)
    return namespace


def test_pods_start_once_the_model_is_on_the_claim_and_load_it_from_there(
    namespace: Namespace, operator: OperatorProcess
) -> None:
    namespace.create(wanting(revision="v1"))
    job = only_job(namespace)
    condition = cached(namespace, "llama", "Downloading")
    assert "org/model at v1 waits for a pod of Job" in condition["message"]
    assert namespace.condition("llama", "Ready")["reason"] == "Downloading"
    assert namespace.find(DEPLOYMENTS, "llama") is None
    assert namespace.find(SERVICES, "llama") is not None
    assert namespace.status("llama")["cache"] == {
        "phase": "Pending",
        "claimName": "models",
        "model": "hf://org/model@v1",
    }

    complete(namespace, job)
    container = eventually(lambda: template(namespace))["spec"]["containers"][0]
    assert f"--revision={COMMIT}" in container["args"]
    assert {"name": "HF_HUB_OFFLINE", "value": "1"} in container["env"]
    assert {"name": "cache", "mountPath": "/models/cache", "readOnly": True} in container["volumeMounts"]
    assert "3.00 GiB" in cached(namespace, "llama", "Cached")["message"]
    status = eventually(lambda: (s := namespace.status("llama"))["cache"]["phase"] == "Ready" and s)
    assert (status["cache"]["commit"], status["cache"]["bytes"]) == (COMMIT, 3 << 30)
    assert status["model"]["revision"] == COMMIT

    def reasons() -> list[str]:
        return [event["reason"] for event in namespace.api.list(EVENTS, namespace.name)]

    eventually(lambda: reasons().count("Cached") == 1)
    assert reasons().count("Downloading") == 1


def test_what_the_pod_said_outlives_it(namespace: Namespace, operator: OperatorProcess) -> None:
    namespace.create(wanting(revision="main"))
    pod = complete(namespace, only_job(namespace))
    eventually(lambda: only_job(namespace)["metadata"]["annotations"].get("serving.quire.dev/commit") == COMMIT)
    namespace.api.delete(PODS, namespace.name, pod)
    namespace.change("llama", {"engine": {"maxNumSeqs": 7}})
    eventually(lambda: "--max-num-seqs=7" in template(namespace)["spec"]["containers"][0]["args"])
    assert f"--revision={COMMIT}" in template(namespace)["spec"]["containers"][0]["args"]


def test_two_services_share_a_download_and_the_last_one_takes_it_along(
    namespace: Namespace, operator: OperatorProcess
) -> None:
    namespace.create(wanting("one"))
    namespace.create(wanting("two"))
    eventually(lambda: owners(only_job(namespace)) == {"one", "two"})
    assert not any(owner.get("controller") for owner in only_job(namespace)["metadata"]["ownerReferences"])
    complete(namespace, only_job(namespace))
    eventually(lambda: template(namespace, "one") and template(namespace, "two"))

    namespace.change("one", {"suspend": True})
    eventually(lambda: owners(only_job(namespace)) == {"two"})
    assert namespace.condition("two", "ModelCached")["reason"] == "Cached"
    namespace.change("two", {"suspend": True})
    eventually(lambda: not jobs(namespace))


def test_another_revision_of_the_spec_is_served_once_it_is_there(
    namespace: Namespace, operator: OperatorProcess
) -> None:
    namespace.create(wanting())
    complete(namespace, only_job(namespace))
    eventually(lambda: template(namespace))
    namespace.roll_out("llama")
    eventually(lambda: namespace.condition("llama", "Ready")["status"] == "True")
    before = namespace.get(DEPLOYMENTS, "llama")["metadata"]["resourceVersion"]

    newer = "beef" + "0" * 36
    namespace.change("llama", {"model": {"revision": newer}, "engine": {"maxNumSeqs": 9}})
    job = job_for(namespace, newer)
    assert cached(namespace, "llama", "Downloading")["status"] == "False"
    assert namespace.condition("llama", "Ready")["status"] == "False"
    assert namespace.condition("llama", "Available")["status"] == "True"
    assert namespace.get(DEPLOYMENTS, "llama")["metadata"]["resourceVersion"] == before
    # what pods serve meanwhile must not be removed by the download
    assert f"--keep={COMMIT}" in job["spec"]["template"]["spec"]["containers"][0]["command"]

    fail(namespace, job, "ModelGated: hub refuses org/model (401): set HF_TOKEN")
    assert "hub refuses org/model (401)" in cached(namespace, "llama", "ModelGated")["message"]
    eventually(lambda: namespace.condition("llama", "Stalled")["reason"] == "ModelGated")
    assert namespace.condition("llama", "Available")["status"] == "True"
    assert namespace.get(DEPLOYMENTS, "llama")["metadata"]["resourceVersion"] == before

    namespace.change("llama", {"model": {"revision": COMMIT}, "engine": {"maxNumSeqs": 256}})
    complete(namespace, job_for(namespace, COMMIT))
    eventually(lambda: namespace.condition("llama", "Ready")["status"] == "True")
    assert namespace.get(DEPLOYMENTS, "llama")["metadata"]["resourceVersion"] == before


def kept(job: Object) -> set[str]:
    command = job["spec"]["template"]["spec"]["containers"][0]["command"]
    return {flag.removeprefix("--keep=") for flag in command if flag.startswith("--keep=")}


def test_a_download_that_waits_will_not_remove_what_another_service_takes_up_meanwhile(
    namespace: Namespace, operator: OperatorProcess
) -> None:
    other = "beef" + "0" * 36
    namespace.create(wanting("one"))
    waiting = only_job(namespace)
    assert kept(waiting) == set()
    namespace.create(wanting("two", revision=other))
    assert kept(job_for(namespace, other)) == {COMMIT}
    eventually(lambda: kept(job_for(namespace, COMMIT)) == {other})
    operator.wait_until_idle()
    before = {job["metadata"]["uid"] for job in jobs(namespace)}
    assert waiting["metadata"]["uid"] not in before
    complete(namespace, job_for(namespace, other), other)
    complete(namespace, job_for(namespace, COMMIT))
    eventually(lambda: template(namespace, "one") and template(namespace, "two"))
    operator.wait_until_idle()
    assert {job["metadata"]["uid"] for job in jobs(namespace)} == before


@pytest.mark.parametrize(
    ("status", "reason", "says"),
    [
        (ended(3, "CacheFull: org/model needs 20.00 GiB more"), "CacheFull", "needs 20.00 GiB more"),
        (ended(1, "HubUnreachable: http://hub cannot be reached"), "HubUnreachable", "http://hub cannot be reached"),
        (ended(1, "Traceback:\n  ValueError: x"), "DownloadFailed", "`kubectl logs -n"),
        (
            {
                "phase": "Pending",
                "conditions": [
                    {
                        "type": "PodScheduled",
                        "status": "False",
                        "reason": "Unschedulable",
                        "message": "0/1 nodes are available: 1 Insufficient memory.",
                    }
                ],
            },
            "Unschedulable",
            "no node has 1Gi memory free",
        ),
    ],
    ids=["full", "unreachable", "unknown", "unschedulable"],
)
def test_a_fault_of_the_downloads_pod_is_the_conditions_reason(
    namespace: Namespace, operator: OperatorProcess, status: Object, reason: str, says: str
) -> None:
    namespace.create(wanting())
    add_pod(namespace, only_job(namespace), status)
    assert says in cached(namespace, "llama", reason)["message"]
    assert namespace.condition("llama", "Ready")["reason"] == reason
    # its Job still tries
    assert namespace.condition("llama", "Reconciling")["reason"] == reason


def test_a_failed_download_is_tried_again_with_an_edit_and_when_its_job_is_deleted(
    namespace: Namespace, operator: OperatorProcess
) -> None:
    namespace.create(wanting())
    first = only_job(namespace)
    fail(namespace, first, "ModelGated: refused")
    eventually(lambda: "kubectl delete job" in cached(namespace, "llama", "ModelGated")["message"])

    namespace.change("llama", {"model": {"tokenSecretRef": {"name": "hf-token", "key": "token"}}})
    second = eventually(lambda: (j := only_job(namespace))["metadata"]["uid"] != first["metadata"]["uid"] and j)
    environment = second["spec"]["template"]["spec"]["containers"][0]["env"]
    assert any(variable["name"] == "HF_TOKEN" for variable in environment)

    namespace.api.request(
        "DELETE", f"{JOBS.path(namespace.name, second['metadata']['name'])}?propagationPolicy=Background"
    )
    eventually(lambda: (j := only_job(namespace))["metadata"]["uid"] != second["metadata"]["uid"] and owners(j))


def test_a_job_of_that_name_that_is_somebody_elses_is_left_alone(
    namespace: Namespace, operator: OperatorProcess
) -> None:
    namespace.create(wanting("probe"))
    name = only_job(namespace)["metadata"]["name"]
    namespace.api.delete(LLMSERVICES, namespace.name, "probe")
    namespace.api.request("DELETE", f"{JOBS.path(namespace.name, name)}?propagationPolicy=Background")
    containers = [{"name": "x", "image": "x"}]
    spec = {"template": {"spec": {"restartPolicy": "Never", "containers": containers}}}
    metadata = {"name": name, "namespace": namespace.name}
    namespace.api.create(JOBS, {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec})
    namespace.create(wanting())
    assert f"Job {name} exists" in cached(namespace, "llama", "NameConflict")["message"]
    assert owners(only_job(namespace)) == set()


def test_without_prefetch_pods_start_at_once_and_download_by_themselves(
    namespace: Namespace, operator: OperatorProcess
) -> None:
    namespace.create(wanting(cache={"claimName": "models", "prefetch": False}))
    container = eventually(lambda: template(namespace))["spec"]["containers"][0]
    assert "HF_HUB_OFFLINE" not in [variable["name"] for variable in container["env"]]
    assert {"name": "cache", "mountPath": "/models/cache"} in container["volumeMounts"]
    assert jobs(namespace) == []
    assert namespace.condition("llama", "ModelCached") == {}


def test_a_claim_of_the_services_own_is_there_before_the_job(namespace: Namespace, operator: OperatorProcess) -> None:
    namespace.create(wanting(cache={"volume": {"size": "1Gi"}}))
    pod = only_job(namespace)["spec"]["template"]["spec"]
    assert namespace.find(CLAIMS, "llama-cache") is not None
    volumes = [volume.get("persistentVolumeClaim") for volume in pod["volumes"]]
    assert {"claimName": "llama-cache"} in volumes


def test_a_branch_is_pinned_to_the_commit_that_the_plan_found(
    namespace: Namespace, operator: OperatorProcess, hub: ThreadingHTTPServer
) -> None:
    handler: Any = hub.RequestHandlerClass
    commit = handler.hub.commit("org/small")
    namespace.create(on_hub(hub, **CLAIM))
    job = only_job(namespace)
    assert f"--revision={commit}" in job["spec"]["template"]["spec"]["containers"][0]["command"]
    complete(namespace, job, commit)
    assert f"--revision={commit}" in eventually(lambda: template(namespace))["spec"]["containers"][0]["args"]
    assert cached(namespace, "llama", "Cached")


def test_at_rest_nothing_is_asked_or_written(namespace: Namespace, operator: OperatorProcess) -> None:
    namespace.create(wanting())
    complete(namespace, only_job(namespace))
    eventually(lambda: template(namespace))
    namespace.roll_out("llama")
    eventually(lambda: namespace.condition("llama", "Ready")["status"] == "True")
    operator.wait_until_idle()
    before = namespace.get(LLMSERVICES, "llama")["metadata"]["resourceVersion"]
    operator.wait_until_idle()
    assert namespace.get(LLMSERVICES, "llama")["metadata"]["resourceVersion"] == before
