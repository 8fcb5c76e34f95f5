"""An LLMService from its creation to its end, on a real API server."""

from __future__ import annotations

from typing import Any

import pytest

from quire_operator.api import parse_llmservice
from quire_operator.builders.desired import desired_objects
from quire_operator.kubeapi.resources import (
    CHILDREN,
    CLAIMS,
    DEPLOYMENTS,
    EVENTS,
    LLMSERVICES,
    PODS,
    SERVICE_ACCOUNTS,
    SERVICES,
    resource_of,
)
from quire_operator.reconcile.difference import first_difference
from tests.operator.api_client import Namespace, eventually
from tests.operator.operator_process import OperatorProcess
from tests.operator.services import CIRCUMSTANCES, manifest

pytestmark = pytest.mark.control_plane


@pytest.fixture(autouse=True)
def _running(operator: OperatorProcess) -> None:
    """Every test here needs the operator."""


def engine(namespace: Namespace, name: str = "llama") -> dict[str, Any]:
    container: dict[str, Any] = namespace.get(DEPLOYMENTS, name)["spec"]["template"]["spec"]["containers"][0]
    return container


def children(namespace: Namespace) -> list[tuple[str, str]]:
    return sorted(
        (resource.kind, item["metadata"]["name"])
        for resource in CHILDREN
        for item in namespace.api.list(resource, namespace.name)
        if "ownerReferences" in item["metadata"]
    )


def reasons(namespace: Namespace, kind: str) -> list[str]:
    """Reasons of the Events of one type."""
    return [event["reason"] for event in namespace.api.list(EVENTS, namespace.name) if event["type"] == kind]


ALL = [
    ("Deployment", "llama"),
    ("PodDisruptionBudget", "llama-pdb"),
    ("Service", "llama"),
    ("Service", "llama-pods"),
    ("ServiceAccount", "llama-engine"),
]


def test_a_new_service_becomes_exactly_what_render_prints(namespace: Namespace) -> None:
    created = namespace.create(manifest(cache={"volume": {"size": "1Gi"}}))
    eventually(lambda: namespace.find(DEPLOYMENTS, "llama"))
    for wanted in desired_objects(parse_llmservice(created), CIRCUMSTANCES):
        live = eventually(lambda wanted=wanted: namespace.find(resource_of(wanted), wanted["metadata"]["name"]))
        assert first_difference(wanted, live) is None
        assert [reference["uid"] for reference in live["metadata"]["ownerReferences"]] == [created["metadata"]["uid"]]


def test_the_status_says_what_it_is_waiting_for_and_then_that_it_serves(namespace: Namespace) -> None:
    namespace.create(manifest(replicas=2))
    ready = eventually(lambda: namespace.condition("llama", "Ready"))
    assert (ready["status"], ready["reason"]) == ("False", "Starting")
    assert namespace.condition("llama", "Accepted")["status"] == "True"
    assert namespace.condition("llama", "Reconciling")["status"] == "True"

    namespace.roll_out("llama")
    eventually(lambda: namespace.condition("llama", "Ready")["status"] == "True")
    status = namespace.status("llama")
    assert [condition["type"] for condition in status["conditions"]] == ["Ready", "Accepted", "Available"]
    assert (status["ready"], status["replicas"], status["observedGeneration"]) == ("2/2", 2, 1)
    assert status["url"] == f"http://llama.{namespace.name}.svc.cluster.local:8000/v1"
    eventually(lambda: sorted(reasons(namespace, "Normal")) == ["Serving", "Starting"])
    assert reasons(namespace, "Warning") == []


def test_of_a_service_itself_the_operator_writes_the_status_alone(namespace: Namespace) -> None:
    created = namespace.create(manifest(replicas=2))
    namespace.change("llama", {"replicas": None})
    eventually(lambda: namespace.status("llama")["observedGeneration"] == 2)
    live = namespace.get(LLMSERVICES, "llama")
    assert "replicas" not in live["spec"]
    assert not {"finalizers", "annotations", "labels"} & {*live["metadata"]}
    subresources = {entry["manager"]: entry.get("subresource") for entry in live["metadata"]["managedFields"]}
    theirs = {entry["manager"] for entry in created["metadata"]["managedFields"]}
    assert {manager: part for manager, part in subresources.items() if manager not in theirs} == {
        "quire-operator": "status"
    }


def test_columns_show_what_an_administrator_asks_first(namespace: Namespace) -> None:
    namespace.create(manifest(replicas=1))
    eventually(lambda: namespace.condition("llama", "Ready"))
    namespace.roll_out("llama")
    eventually(lambda: namespace.condition("llama", "Ready")["status"] == "True")
    http = namespace.api._http
    accept = {"Accept": "application/json;as=Table;g=meta.k8s.io;v=v1"}
    table = http.get(LLMSERVICES.path(namespace.name), headers=accept).json()
    narrow = [column["name"] for column in table["columnDefinitions"] if column["priority"] == 0]
    assert narrow == ["Name", "Ready", "Model", "Replicas", "GPUs", "Reason", "Age"]
    assert table["rows"][0]["cells"][:6] == ["llama", "True", "image:///models/tiny", "1/1", 0, "Serving"]


def test_a_change_of_the_service_reaches_the_service_and_the_url(namespace: Namespace) -> None:
    namespace.create(manifest())
    eventually(lambda: namespace.find(SERVICES, "llama"))
    namespace.change("llama", {"service": {"port": 80, "annotations": {"a.example/b": "c"}}})
    eventually(lambda: namespace.get(SERVICES, "llama")["spec"]["ports"][0]["port"] == 80)
    assert namespace.get(SERVICES, "llama")["metadata"]["annotations"]["a.example/b"] == "c"
    eventually(lambda: ":80/v1" in namespace.status("llama")["url"])


def test_fixed_replicas_are_enforced_against_a_hand_edit(namespace: Namespace) -> None:
    namespace.create(manifest(replicas=2))
    eventually(lambda: namespace.find(DEPLOYMENTS, "llama"))
    namespace.api.patch(DEPLOYMENTS, namespace.name, "llama", {"spec": {"replicas": 5}})
    eventually(lambda: namespace.get(DEPLOYMENTS, "llama")["spec"]["replicas"] == 2)


def test_without_replicas_the_live_count_is_whoevers_that_scales(
    namespace: Namespace, operator: OperatorProcess
) -> None:
    namespace.create(manifest())
    eventually(lambda: namespace.find(DEPLOYMENTS, "llama"))
    assert namespace.get(DEPLOYMENTS, "llama")["spec"]["replicas"] == 1
    namespace.api.patch(DEPLOYMENTS, namespace.name, "llama", {"spec": {"replicas": 3}})
    namespace.change("llama", {"engine": {"maxNumSeqs": 9}})
    eventually(lambda: "--max-num-seqs=9" in engine(namespace)["args"])
    operator.wait_until_idle()
    assert namespace.get(DEPLOYMENTS, "llama")["spec"]["replicas"] == 3


def test_letting_go_of_replicas_keeps_the_live_count(namespace: Namespace, operator: OperatorProcess) -> None:
    namespace.create(manifest(replicas=4))
    eventually(lambda: namespace.find(DEPLOYMENTS, "llama"))
    namespace.change("llama", {"replicas": None, "engine": {"maxNumSeqs": 9}})
    eventually(lambda: "--max-num-seqs=9" in engine(namespace)["args"])
    operator.wait_until_idle()
    assert namespace.get(DEPLOYMENTS, "llama")["spec"]["replicas"] == 4
    namespace.change("llama", {"replicas": 2})
    eventually(lambda: namespace.get(DEPLOYMENTS, "llama")["spec"]["replicas"] == 2)


def test_the_scale_subresource_scales(namespace: Namespace) -> None:
    namespace.create(manifest(replicas=1))
    eventually(lambda: namespace.condition("llama", "Ready"))
    path = LLMSERVICES.path(namespace.name, "llama", "scale")
    namespace.api.request("PATCH", path, {"spec": {"replicas": 3}}, "application/merge-patch+json")
    eventually(lambda: namespace.get(DEPLOYMENTS, "llama")["spec"]["replicas"] == 3)
    scale = namespace.api.request("GET", path)
    assert scale["status"]["selector"].startswith("serving.quire.dev/llmservice=llama")


def test_a_hand_edit_of_a_field_that_is_ours_is_undone(namespace: Namespace) -> None:
    namespace.create(manifest())
    eventually(lambda: namespace.find(DEPLOYMENTS, "llama"))
    edit = {"spec": {"selector": {"app": "stranger"}}}
    namespace.api.patch(SERVICES, namespace.name, "llama", edit)
    eventually(lambda: "serving.quire.dev/llmservice" in namespace.get(SERVICES, "llama")["spec"]["selector"])
    template = namespace.get(DEPLOYMENTS, "llama")["spec"]["template"]
    template["spec"]["containers"][0]["args"] = ["--model=/elsewhere"]
    namespace.api.patch(DEPLOYMENTS, namespace.name, "llama", {"spec": {"template": template}})
    eventually(lambda: "--model=/models/tiny" in engine(namespace)["args"])


def test_what_others_add_is_left_alone(namespace: Namespace, operator: OperatorProcess) -> None:
    namespace.create(manifest())
    eventually(lambda: namespace.find(SERVICES, "llama"))
    operator.wait_until_idle()
    namespace.api.patch(SERVICES, namespace.name, "llama", {"metadata": {"annotations": {"mesh.example/on": "true"}}})
    operator.wait_until_idle()
    assert namespace.get(SERVICES, "llama")["metadata"]["annotations"]["mesh.example/on"] == "true"


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_a_child_deleted_by_hand_comes_back(namespace: Namespace, kind: str, name: str) -> None:
    namespace.create(manifest())
    eventually(lambda: children(namespace) == ALL)
    resource = next(resource for resource in CHILDREN if resource.kind == kind)
    uid = namespace.get(resource, name)["metadata"]["uid"]
    namespace.api.delete(resource, namespace.name, name)
    eventually(lambda: (namespace.find(resource, name) or {"metadata": {"uid": uid}})["metadata"]["uid"] != uid)


def test_a_name_taken_by_a_stranger_is_said_and_the_stranger_is_left_alone(namespace: Namespace) -> None:
    ports = [{"port": 80}]
    stranger = namespace.api.create(
        SERVICES,
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "llama", "namespace": namespace.name},
            "spec": {"ports": ports, "selector": {"app": "stranger"}},
        },
    )
    namespace.create(manifest())
    eventually(lambda: namespace.condition("llama", "Stalled").get("reason") == "NameConflict")
    assert "Service llama exists and is not this LLMService's" in namespace.condition("llama", "Ready")["message"]
    assert namespace.get(SERVICES, "llama")["metadata"]["resourceVersion"] == stranger["metadata"]["resourceVersion"]

    namespace.api.delete(SERVICES, namespace.name, "llama")
    namespace.change("llama", {"engine": {"maxNumSeqs": 9}})
    eventually(lambda: not namespace.condition("llama", "Stalled"))
    assert "ownerReferences" in namespace.get(SERVICES, "llama")["metadata"]


def test_an_orphan_of_ours_is_taken_back(namespace: Namespace) -> None:
    namespace.create(manifest())
    eventually(lambda: children(namespace) == ALL)
    namespace.api.patch(SERVICES, namespace.name, "llama", {"metadata": {"ownerReferences": None}})
    eventually(lambda: "ownerReferences" in namespace.get(SERVICES, "llama")["metadata"])


def test_a_child_that_is_no_longer_wanted_goes(namespace: Namespace) -> None:
    namespace.create(manifest(cache={"volume": {"size": "1Gi"}}))
    eventually(lambda: namespace.find(CLAIMS, "llama-cache"))
    eventually(lambda: namespace.find(DEPLOYMENTS, "llama"))
    namespace.change("llama", {"cache": None})
    namespace.roll_out("llama")  # before, pods may need it
    # the API server holds a claim until its protection is taken off, which the controller manager does
    eventually(lambda: namespace.get(CLAIMS, "llama-cache")["metadata"].get("deletionTimestamp"))
    assert namespace.find(DEPLOYMENTS, "llama")


def test_a_retained_claim_has_no_owner_and_is_taken_over_by_the_next_of_its_name(namespace: Namespace) -> None:
    body = manifest(cache={"volume": {"size": "1Gi", "reclaim": "Retain"}})
    namespace.create(body)
    claim = eventually(lambda: namespace.find(CLAIMS, "llama-cache"))
    assert "ownerReferences" not in claim["metadata"]
    eventually(lambda: children(namespace) == ALL)
    namespace.api.delete(LLMSERVICES, namespace.name, "llama")
    for resource, name in [(r, n) for k, n in ALL for r in CHILDREN if r.kind == k]:
        namespace.api.delete(resource, namespace.name, name)
    namespace.create(body)
    eventually(lambda: children(namespace) == ALL)
    assert namespace.get(CLAIMS, "llama-cache")["metadata"]["uid"] == claim["metadata"]["uid"]
    assert not namespace.condition("llama", "Stalled")


def test_a_claim_that_could_not_grow_is_as_it_was_again_and_none_shrinks(namespace: Namespace) -> None:
    namespace.create(manifest(cache={"volume": {"size": "2Gi"}}))
    eventually(lambda: namespace.find(CLAIMS, "llama-cache"))
    namespace.change("llama", {"cache": {"volume": {"size": "3Gi"}}})  # of a storage class that does not expand
    eventually(lambda: namespace.condition("llama", "Stalled").get("reason") == "ChildRefused")
    namespace.change("llama", {"cache": {"volume": {"size": "2Gi"}}})
    eventually(lambda: not namespace.condition("llama", "Stalled"))

    namespace.change("llama", {"cache": {"volume": {"size": "1Gi"}}})
    advice = eventually(lambda: [a for a in namespace.status("llama")["advice"] if a["reason"] == "ClaimLarger"])
    assert "claim llama-cache asks for 2Gi" in advice[0]["message"]
    assert not namespace.condition("llama", "Stalled")
    assert namespace.get(CLAIMS, "llama-cache")["spec"]["resources"]["requests"]["storage"] == "2Gi"


def test_suspending_removes_the_workload_and_keeps_the_claim(namespace: Namespace) -> None:
    namespace.create(manifest(cache={"volume": {"size": "1Gi"}}))
    eventually(lambda: namespace.find(DEPLOYMENTS, "llama"))
    namespace.change("llama", {"suspend": True})
    eventually(lambda: children(namespace) == [("PersistentVolumeClaim", "llama-cache")])
    eventually(lambda: namespace.condition("llama", "Ready").get("reason") == "Suspended")
    assert not namespace.condition("llama", "Stalled")
    namespace.change("llama", {"suspend": False})
    eventually(lambda: len(children(namespace)) == len(ALL) + 1)


def test_a_field_that_is_not_supported_yet_is_refused_and_what_runs_keeps_running(namespace: Namespace) -> None:
    namespace.create(manifest())
    deployment = eventually(lambda: namespace.find(DEPLOYMENTS, "llama"))
    namespace.change("llama", {"model": {"kvCacheDtype": "fp8"}, "engine": {"maxNumSeqs": 9}})
    accepted = eventually(lambda: (c := namespace.condition("llama", "Accepted"))["status"] == "False" and c)
    assert accepted["reason"] == "NotSupportedYet"
    assert "spec.model.kvCacheDtype (write auto)" in accepted["message"]
    live = namespace.get(DEPLOYMENTS, "llama")
    assert live["metadata"]["resourceVersion"] == deployment["metadata"]["resourceVersion"]
    assert namespace.condition("llama", "Stalled")["reason"] == "NotSupportedYet"


def test_pod_templates_are_merged_over_the_operators_own(namespace: Namespace) -> None:
    pod_template = {
        "metadata": {"labels": {"team": "search", "serving.quire.dev/llmservice": "stolen"}},
        "spec": {
            "containers": [
                {"name": "engine", "env": [{"name": "MORE", "value": "1"}], "securityContext": {"runAsUser": 1234}},
                {"name": "sidecar", "image": "example/sidecar:1"},
            ],
            "volumes": [{"name": "tmp", "ephemeral": {"volumeClaimTemplate": {"spec": _CLAIM_SPEC}}}],
        },
    }
    namespace.create(manifest(podTemplate=pod_template))
    template = eventually(lambda: namespace.find(DEPLOYMENTS, "llama"))["spec"]["template"]
    first, second = template["spec"]["containers"]
    assert (first["name"], second["image"]) == ("engine", "example/sidecar:1")
    assert first["securityContext"]["runAsUser"] == 1234
    assert first["securityContext"]["readOnlyRootFilesystem"] is True
    assert {"MORE", "HOME"} <= {variable["name"] for variable in first["env"]}
    assert template["metadata"]["labels"]["team"] == "search"
    assert template["metadata"]["labels"]["serving.quire.dev/llmservice"] == "llama"
    assert "emptyDir" not in next(volume for volume in template["spec"]["volumes"] if volume["name"] == "tmp")


_CLAIM_SPEC = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}


def test_a_pod_template_that_the_api_server_refuses_is_said_in_its_words(namespace: Namespace) -> None:
    namespace.create(manifest(podTemplate={"spec": {"containers": [{"name": "sidecar"}]}}))
    stalled = eventually(lambda: namespace.condition("llama", "Stalled"))
    assert stalled["reason"] == "ChildRefused"
    assert "spec.template.spec.containers[1].image: Required value" in stalled["message"]


@pytest.mark.parametrize(
    ("pod", "field"),
    [
        ({"containers": [{"name": "engine", "env": [{"name": "X", "value": 1}]}]}, '.env[name="X"].value'),
        ({"hostAliases": "all"}, ".spec.hostAliases"),
        ({"hostNetworks": True}, ".spec.hostNetworks"),
    ],
)
def test_a_pod_template_of_a_wrong_type_or_field_is_named(
    namespace: Namespace, pod: dict[str, Any], field: str
) -> None:
    namespace.create(manifest(podTemplate={"spec": pod}))
    stalled = eventually(lambda: namespace.condition("llama", "Stalled"))
    assert stalled["reason"] == "ChildRefused"
    assert field in stalled["message"]


def test_a_bad_service_does_not_touch_its_neighbour(namespace: Namespace) -> None:
    namespace.create(manifest("bad", podTemplate={"spec": {"containers": [{"name": "sidecar"}]}}))
    namespace.create(manifest("good"))
    eventually(lambda: namespace.condition("bad", "Stalled"))
    eventually(lambda: namespace.find(DEPLOYMENTS, "good"))
    namespace.roll_out("good")
    eventually(lambda: namespace.condition("good", "Ready")["status"] == "True")


def test_a_deleted_service_is_forgotten_and_its_children_stay_deleted(
    namespace: Namespace, operator: OperatorProcess
) -> None:
    namespace.create(manifest())
    eventually(lambda: children(namespace) == ALL)
    namespace.api.delete(LLMSERVICES, namespace.name, "llama")
    for kind, name in ALL:  # as the garbage collector, which does not run here, would for their ownerReferences
        namespace.api.delete(next(r for r in CHILDREN if r.kind == kind), namespace.name, name)
    operator.wait_until_idle()
    assert children(namespace) == []


def test_children_of_a_predecessor_are_waited_for_and_not_taken(namespace: Namespace) -> None:
    namespace.create(manifest())
    eventually(lambda: children(namespace) == ALL)
    old = namespace.get(DEPLOYMENTS, "llama")["metadata"]["uid"]
    namespace.api.delete(LLMSERVICES, namespace.name, "llama")
    namespace.create(manifest())
    eventually(lambda: namespace.condition("llama", "Ready").get("reason") == "Waiting")
    assert namespace.get(DEPLOYMENTS, "llama")["metadata"]["uid"] == old
    for kind, name in ALL:
        namespace.api.delete(next(r for r in CHILDREN if r.kind == kind), namespace.name, name)
    eventually(lambda: namespace.get(DEPLOYMENTS, "llama")["metadata"]["uid"] != old)
    eventually(lambda: namespace.condition("llama", "Ready").get("reason") == "Starting")


def test_a_pods_own_reason_becomes_the_services(namespace: Namespace) -> None:
    namespace.create(manifest(replicas=2))
    eventually(lambda: namespace.find(DEPLOYMENTS, "llama"))
    last = {"exitCode": 1, "reason": "Error", "message": "RevisionNotFound: org/name has no revision v9: write main"}
    state = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container"}}
    container = {
        "name": "engine",
        "image": "quire/engine:test",
        "imageID": "",
        "ready": False,
        "restartCount": 2,
        "state": state,
        "lastState": {"terminated": last},
    }
    namespace.add_pod("llama", {"phase": "Running", "containerStatuses": [container]})
    ready = eventually(lambda: (c := namespace.condition("llama", "Ready"))["reason"] == "RevisionNotFound" and c)
    assert "org/name has no revision v9: write main" in ready["message"]
    assert namespace.condition("llama", "Stalled")["reason"] == "RevisionNotFound"
    assert eventually(lambda: reasons(namespace, "Warning")) == ["RevisionNotFound"]

    namespace.api.request("DELETE", f"{PODS.path(namespace.name, 'llama-a')}?gracePeriodSeconds=0")
    eventually(lambda: namespace.condition("llama", "Ready")["reason"] == "Starting")
    assert not namespace.condition("llama", "Stalled")


def test_a_failing_rollout_stays_available_while_old_pods_serve(namespace: Namespace) -> None:
    namespace.create(manifest(replicas=1))
    eventually(lambda: namespace.find(DEPLOYMENTS, "llama"))
    namespace.roll_out("llama")
    eventually(lambda: namespace.condition("llama", "Ready")["status"] == "True")
    namespace.change("llama", {"engine": {"image": "does/not-exist:1"}})
    eventually(lambda: namespace.condition("llama", "Ready")["reason"] == "RollingOut")
    waiting = {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "does/not-exist:1": not found'}
    container = {
        "name": "engine",
        "image": "does/not-exist:1",
        "imageID": "",
        "ready": False,
        "restartCount": 0,
        "state": {"waiting": waiting},
    }
    namespace.add_pod("llama", {"phase": "Pending", "containerStatuses": [container]})
    eventually(lambda: namespace.condition("llama", "Ready")["reason"] == "ImagePullBackOff")
    assert namespace.condition("llama", "Available")["status"] == "True"


def test_the_operator_never_lacks_a_right_that_it_asks_for(operator: OperatorProcess) -> None:
    operator.wait_until_idle()
    assert operator.metric("quire_operator_api_calls_total", code="403") == 0
    assert not operator.says("forbidden")


def test_service_accounts_carry_no_token(namespace: Namespace) -> None:
    namespace.create(manifest())
    account = eventually(lambda: namespace.find(SERVICE_ACCOUNTS, "llama-engine"))
    assert account["automountServiceAccountToken"] is False
