"""Who sets the number of replicas, and that it never drops when that changes: on a real API server."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import yaml

from e2e.cluster.control_plane import ControlPlane
from quire_operator.api import parse_llmservice
from quire_operator.builders.circumstances import EVERYTHING, Circumstances
from quire_operator.builders.scaled_object import build_scaled_object
from quire_operator.kubeapi.resources import AUTOSCALERS, DEPLOYMENTS, LLMSERVICES, SCALED_OBJECTS
from quire_operator.reconcile.children import HANDOVER_MANAGER
from quire_operator.reconcile.difference import first_difference
from quire_operator.settings import Settings
from tests.operator.api_client import ApiClient, Namespace, Object, eventually
from tests.operator.conftest import operators, program_folder
from tests.operator.operator_process import OperatorProcess
from tests.operator.services import manifest

pytestmark = pytest.mark.control_plane

PROMETHEUS = "http://prometheus.monitoring.svc:9090"
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
POLICIES = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
CRON = {"type": "cron", "metadata": {"timezone": "UTC", "start": "0 8 * * *", "end": "0 9 * * *"}}
NOTICED_SECONDS = 90
"""The operator asks every 30 s which APIs there are."""
SCALER, KEDAS = "llama-scaler", "keda-hpa-llama-scaler"
FINALIZER = "finalizer.keda.sh"


@pytest.fixture(scope="module")
def operator(
    control_plane: ControlPlane, api: ApiClient, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OperatorProcess]:
    with operators(control_plane, tmp_path_factory.mktemp("operator")) as start:
        process = start("--engine-image=quire/engine:test", f"--prometheus-address={PROMETHEUS}")
        process.wait_until_leading()
        yield process


@pytest.fixture(scope="module")
def keda(api: ApiClient) -> Iterator[None]:
    """Its CRD, and in the end none: what is left of its objects first, or it would wait for them."""
    (file,) = program_folder("keda-crds").glob("*_scaledobjects.yaml")
    definition = yaml.safe_load(file.read_text())
    path = f"{DEFINITIONS}/{definition['metadata']['name']}"
    api.apply(path, definition)
    eventually(lambda: api.request("GET", SCALED_OBJECTS.path()))
    yield
    for item in api.list(SCALED_OBJECTS):
        api.patch(
            SCALED_OBJECTS, item["metadata"]["namespace"], item["metadata"]["name"], {"metadata": {"finalizers": []}}
        )
    api.request("DELETE", path)


@pytest.fixture
def scaled(namespace: Namespace, operator: OperatorProcess, keda: None) -> Namespace:
    """A namespace for an operator that knows of KEDA."""
    namespace.create(manifest("first", autoscaling={"maxReplicas": 2}))
    eventually(lambda: namespace.find(SCALED_OBJECTS, "first-scaler"), NOTICED_SECONDS)
    return namespace


class Watched:
    """Every state of a Deployment since the watch began."""

    def __init__(self) -> None:
        self.states: list[Object] = []

    def replicas(self) -> list[int]:
        return [state["spec"]["replicas"] for state in self.states]

    def version_of_handover(self) -> int:
        """resourceVersion from which the count was no more the operator's."""
        return next(
            int(state["metadata"]["resourceVersion"]) for state in self.states if owners(state) == {HANDOVER_MANAGER}
        )


@contextlib.contextmanager
def watching(namespace: Namespace, name: str = "llama") -> Iterator[Watched]:
    """Follow the Deployment, which need not exist yet."""
    watched, stop, began = Watched(), threading.Event(), threading.Event()
    listed = namespace.api.request("GET", DEPLOYMENTS.path(namespace.name))
    query = {
        "watch": "true",
        "fieldSelector": f"metadata.name={name}",
        "resourceVersion": listed["metadata"]["resourceVersion"],
        "timeoutSeconds": "300",
    }

    def follow() -> None:
        path = DEPLOYMENTS.path(namespace.name)
        with namespace.api._http.stream("GET", path, params=query, timeout=310) as response:
            began.set()
            for line in response.iter_lines():
                watched.states.append(json.loads(line)["object"])
                if stop.is_set():
                    return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    assert began.wait(30)
    try:
        yield watched
    finally:
        stop.set()
        # one last change ends the watch, and shows that everything before was seen
        namespace.api.patch(DEPLOYMENTS, namespace.name, name, {"metadata": {"annotations": {"tests/end": "x"}}})
        thread.join(30)
        assert not thread.is_alive()


def owners(deployment: Object) -> set[str]:
    """Field managers of spec.replicas."""
    return {
        entry["manager"]
        for entry in deployment["metadata"]["managedFields"]
        if "f:replicas" in entry["fieldsV1"].get("f:spec", {})
    }


def replicas(namespace: Namespace, name: str = "llama") -> int:
    count: int = namespace.get(DEPLOYMENTS, name)["spec"]["replicas"]
    return count


def scale(namespace: Namespace, count: int) -> None:
    """As an autoscaler does."""
    path = f"{DEPLOYMENTS.path(namespace.name, 'llama', 'scale')}?fieldManager=an-autoscaler"
    namespace.api.request("PATCH", path, {"spec": {"replicas": count}}, "application/merge-patch+json")


def adopt(namespace: Namespace) -> None:
    """What KEDA does with a new ScaledObject: a finalizer, and an autoscaler with the same labels."""
    live = eventually(lambda: namespace.find(SCALED_OBJECTS, SCALER))
    finalizers = {"metadata": {"finalizers": [FINALIZER]}}
    namespace.api.patch(SCALED_OBJECTS, namespace.name, SCALER, finalizers)
    owner = {"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "name": SCALER, "controller": True}
    metadata = {
        "name": KEDAS,
        "namespace": namespace.name,
        "labels": live["metadata"]["labels"],
        "ownerReferences": [{**owner, "uid": live["metadata"]["uid"]}],
    }
    target = live["spec"]["scaleTargetRef"]
    spec = {"scaleTargetRef": target, "minReplicas": 1, "maxReplicas": 5}
    namespace.api.create(AUTOSCALERS, {"kind": "HorizontalPodAutoscaler", "metadata": metadata, "spec": spec})


def let_go(namespace: Namespace) -> None:
    """What KEDA does with a ScaledObject that is deleted."""
    eventually(lambda: namespace.get(SCALED_OBJECTS, SCALER)["metadata"].get("deletionTimestamp"))
    namespace.api.patch(SCALED_OBJECTS, namespace.name, SCALER, {"metadata": {"finalizers": []}})


def test_without_keda_a_service_serves_and_is_scaled_as_soon_as_keda_is_there(
    namespace: Namespace, operator: OperatorProcess, request: pytest.FixtureRequest
) -> None:
    namespace.create(manifest(autoscaling={"minReplicas": 0, "maxReplicas": 4, "triggers": [CRON]}))
    eventually(lambda: namespace.condition("llama", "Autoscaling")["reason"] == "KedaMissing")
    assert replicas(namespace) == 1
    namespace.roll_out("llama")
    eventually(lambda: namespace.condition("llama", "Ready")["status"] == "True")

    request.getfixturevalue("keda")
    eventually(lambda: namespace.find(SCALED_OBJECTS, SCALER), NOTICED_SECONDS)
    eventually(lambda: namespace.condition("llama", "Autoscaling")["reason"] == "ScalerPending")
    assert namespace.condition("llama", "Ready")["status"] == "True"
    assert replicas(namespace) == 1


EVERY_FIELD: dict[str, Any] = {
    "minReplicas": 2,
    "maxReplicas": 5,
    "idleReplicas": 0,
    "fallbackReplicas": 3,
    "queueDepth": {"target": 5, "activation": 2},
    "latency": {"metric": "timeToFirstToken", "target": "1500ms", "activation": "40ms"},
    "triggers": [CRON],
    "behavior": {"scaleUp": {"policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]}},
    "prometheus": {"serverAddress": PROMETHEUS, "authenticationRef": {"name": "prometheus"}},
}


@pytest.mark.parametrize("autoscaling", [{"maxReplicas": 5}, EVERY_FIELD], ids=["defaults", "every field"])
def test_keda_knows_every_field_and_adds_none_that_would_be_put_back_for_ever(
    scaled: Namespace, operator: OperatorProcess, autoscaling: dict[str, Any]
) -> None:
    created = scaled.create(manifest(autoscaling=autoscaling))
    live = eventually(lambda: scaled.find(SCALED_OBJECTS, SCALER))
    circumstances = Circumstances(Settings(prometheus_address=PROMETHEUS), EVERYTHING)
    wanted = build_scaled_object(parse_llmservice(created), circumstances)
    assert wanted is not None
    assert first_difference({"spec": wanted["spec"]}, live) is None
    strictly = "?fieldManager=tests&force=true&dryRun=All&fieldValidation=Strict"
    path = SCALED_OBJECTS.path(scaled.name, SCALER)
    scaled.api.request("PATCH", f"{path}{strictly}", wanted, "application/apply-patch+yaml")
    operator.wait_until_idle()
    assert scaled.get(SCALED_OBJECTS, SCALER)["metadata"]["resourceVersion"] == live["metadata"]["resourceVersion"]


def test_a_new_service_starts_at_its_least_and_not_at_one(scaled: Namespace, operator: OperatorProcess) -> None:
    with watching(scaled) as watched, watching(scaled, "asleep") as asleep:
        scaled.create(manifest(autoscaling={"minReplicas": 3, "maxReplicas": 5}))
        scaled.create(manifest("asleep", autoscaling={"minReplicas": 0, "maxReplicas": 5, "triggers": [CRON]}))
        for name in ("llama-scaler", "asleep-scaler"):
            eventually(lambda name=name: scaled.find(SCALED_OBJECTS, name))
        operator.wait_until_idle()
    assert set(watched.replicas()) == {3}
    assert set(asleep.replicas()) == {0}


def test_three_fixed_replicas_never_drop_on_the_way_to_autoscaling(
    scaled: Namespace, operator: OperatorProcess
) -> None:
    scaled.create(manifest(replicas=3))
    eventually(lambda: replicas(scaled) == 3)
    with watching(scaled) as watched:
        scaled.change("llama", {"replicas": None, "autoscaling": {"minReplicas": 1, "maxReplicas": 5}})
        scaler = eventually(lambda: scaled.find(SCALED_OBJECTS, SCALER))
        scaled.change("llama", {"engine": {"maxNumSeqs": 9}})
        operator.wait_until_idle()
    assert set(watched.replicas()) == {3}
    # before there was anything that could scale
    assert watched.version_of_handover() < int(scaler["metadata"]["resourceVersion"])


def test_what_a_scaler_has_set_stays_through_edits(scaled: Namespace, operator: OperatorProcess) -> None:
    scaled.create(manifest(autoscaling={"minReplicas": 1, "maxReplicas": 5}))
    adopt(scaled)
    with watching(scaled) as watched:
        scale(scaled, 4)
        scaled.change("llama", {"engine": {"maxNumSeqs": 9}})
        eventually(lambda: "--max-num-seqs=9" in str(scaled.get(DEPLOYMENTS, "llama")["spec"]["template"]))
        scaled.change("llama", {"autoscaling": {"maxReplicas": 6}})
        eventually(lambda: scaled.get(SCALED_OBJECTS, SCALER)["spec"]["maxReplicaCount"] == 6)
        operator.wait_until_idle()
    assert set(watched.replicas()) == {4}


def test_new_bounds_reach_a_scaler_that_works(scaled: Namespace) -> None:
    scaled.create(manifest(autoscaling={"minReplicas": 1, "maxReplicas": 5}))
    adopt(scaled)
    scaled.change("llama", {"autoscaling": {"minReplicas": 3, "maxReplicas": 4}})

    def bounds() -> tuple[int, int]:
        spec = scaled.get(SCALED_OBJECTS, SCALER)["spec"]
        return spec["minReplicaCount"], spec["maxReplicaCount"]

    eventually(lambda: bounds() == (3, 4))


def test_a_fixed_number_is_set_once_the_scaler_and_what_keda_made_are_gone(scaled: Namespace) -> None:
    scaled.create(manifest(autoscaling={"minReplicas": 1, "maxReplicas": 5}))
    adopt(scaled)
    scale(scaled, 4)
    with watching(scaled) as watched:
        scaled.change("llama", {"autoscaling": None, "replicas": 2, "engine": {"maxNumSeqs": 9}})
        eventually(lambda: "ScaledObject llama-scaler" in scaled.condition("llama", "Reconciling")["message"])
        # a scaler that does not go holds back its number, and nothing else
        eventually(lambda: "--max-num-seqs=9" in str(scaled.get(DEPLOYMENTS, "llama")["spec"]["template"]))
        let_go(scaled)
        eventually(lambda: "ScaledObject" not in scaled.condition("llama", "Reconciling")["message"])
        assert f"HorizontalPodAutoscaler {KEDAS}" in scaled.condition("llama", "Reconciling")["message"]
        assert replicas(scaled) == 4
        scaled.api.delete(AUTOSCALERS, scaled.name, KEDAS)  # as the garbage collector does
        eventually(lambda: replicas(scaled) == 2)
    assert watched.replicas()[-1] == 2
    assert set(watched.replicas()) == {4, 2}
    scale(scaled, 5)
    eventually(lambda: replicas(scaled) == 2)
    assert scaled.condition("llama", "Autoscaling") == {}


def test_without_autoscaling_and_replicas_the_count_stays(scaled: Namespace, operator: OperatorProcess) -> None:
    scaled.create(manifest(autoscaling={"minReplicas": 1, "maxReplicas": 5}))
    eventually(lambda: scaled.find(SCALED_OBJECTS, SCALER))
    scale(scaled, 4)
    with watching(scaled) as watched:
        scaled.change("llama", {"autoscaling": None})
        eventually(lambda: scaled.find(SCALED_OBJECTS, SCALER) is None)
        operator.wait_until_idle()
    assert set(watched.replicas()) == {4}


def test_one_backend_comes_after_the_other_has_gone(scaled: Namespace, operator: OperatorProcess) -> None:
    scaled.create(manifest(autoscaling={"minReplicas": 2, "maxReplicas": 5}))
    adopt(scaled)
    scale(scaled, 4)
    with watching(scaled) as watched:
        scaled.change("llama", {"autoscaling": {"backend": "hpa"}})
        let_go(scaled)
        eventually(lambda: scaled.find(SCALED_OBJECTS, SCALER) is None)
        operator.wait_until_idle()
        assert scaled.find(AUTOSCALERS, SCALER) is None
        scaled.api.delete(AUTOSCALERS, scaled.name, KEDAS)
        eventually(lambda: scaled.find(AUTOSCALERS, SCALER))
        eventually(lambda: scaled.condition("llama", "Autoscaling")["reason"] == "CustomMetricsMissing")
        scaled.change("llama", {"autoscaling": {"backend": "keda"}})
        eventually(lambda: scaled.find(SCALED_OBJECTS, SCALER))
        assert scaled.find(AUTOSCALERS, SCALER) is None
    assert set(watched.replicas()) == {4}


def test_suspending_removes_the_scaler_first(scaled: Namespace) -> None:
    scaled.create(manifest(autoscaling={"minReplicas": 2, "maxReplicas": 5}))
    eventually(lambda: scaled.find(SCALED_OBJECTS, SCALER))
    scaled.change("llama", {"suspend": True})
    eventually(lambda: scaled.find(DEPLOYMENTS, "llama") is None)
    assert scaled.find(SCALED_OBJECTS, SCALER) is None
    eventually(lambda: scaled.condition("llama", "Ready")["reason"] == "Suspended")
    scaled.change("llama", {"suspend": False})
    eventually(lambda: scaled.find(SCALED_OBJECTS, SCALER))
    assert replicas(scaled) == 2


def test_scaling_an_autoscaled_service_by_hand_is_refused_with_what_to_do(scaled: Namespace) -> None:
    scaled.create(manifest(autoscaling={"minReplicas": 2, "maxReplicas": 5}))
    path = LLMSERVICES.path(scaled.name, "llama", "scale")
    with pytest.raises(httpx.HTTPStatusError) as refused:
        scaled.api.request("PATCH", path, {"spec": {"replicas": 3}}, "application/merge-patch+json")
    assert "bounded by its minReplicas and maxReplicas, not by `kubectl scale`" in refused.value.response.text


def test_another_scaler_on_the_same_pods_is_told_in_kedas_words_and_the_service_serves(scaled: Namespace) -> None:
    words = "the workload 'llama' of type 'apps/v1.Deployment' is already managed by the hpa 'mine'"
    refuse(scaled, words)  # as KEDA's webhook does
    try:
        scaled.create(manifest(autoscaling={"minReplicas": 1, "maxReplicas": 5}))
        told = eventually(
            lambda: (c := scaled.condition("llama", "Autoscaling"))["reason"] == "ConflictingScaler" and c
        )
        assert words in told["message"]
        assert "Remove that one" in told["message"]
        scaled.roll_out("llama")
        eventually(lambda: scaled.condition("llama", "Ready")["status"] == "True")
    finally:
        for kind in ("policies", "policybindings"):
            scaled.api.request("DELETE", f"{POLICIES.replace('policies', kind)}/{scaled.name}")
    eventually(lambda: scaled.find(SCALED_OBJECTS, SCALER), 60)


def refuse(namespace: Namespace, words: str) -> None:
    """Have the API server refuse ScaledObjects of this namespace with these words."""
    rule = {"apiGroups": ["keda.sh"], "apiVersions": ["*"], "operations": ["CREATE"], "resources": ["scaledobjects"]}
    selector = {"matchLabels": {"kubernetes.io/metadata.name": namespace.name}}
    match = {"resourceRules": [rule], "namespaceSelector": selector}
    version, metadata = "admissionregistration.k8s.io/v1", {"name": namespace.name}
    validations = [{"expression": "object.metadata.name == 'first-scaler'", "message": words}]
    policy = {"matchConstraints": match, "validations": validations, "failurePolicy": "Fail"}
    kind = "ValidatingAdmissionPolicy"
    namespace.api.request("POST", POLICIES, {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": policy})
    binding = {"policyName": namespace.name, "validationActions": ["Deny"]}
    body = {"apiVersion": version, "kind": f"{kind}Binding", "metadata": metadata, "spec": binding}
    namespace.api.request("POST", POLICIES.replace("policies", "policybindings"), body)
    attempt = {"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "metadata": {"name": "x"}}
    spec = {"scaleTargetRef": {"name": "x"}, "triggers": []}

    def refused() -> bool:
        path = f"{SCALED_OBJECTS.path(namespace.name)}?dryRun=All"
        try:
            namespace.api.request("POST", path, {**attempt, "spec": spec})
        except httpx.HTTPStatusError as error:
            return words in error.response.text
        return False

    eventually(refused)


def test_an_autoscaler_that_reads_metrics_all_the_time_makes_the_operator_write_nothing(
    scaled: Namespace, operator: OperatorProcess
) -> None:
    scaled.create(manifest(autoscaling={"minReplicas": 1, "maxReplicas": 5}))
    adopt(scaled)
    conditions = [
        {"type": kind, "status": "True", "reason": "Fine", "message": "all is well"}
        for kind in ("AbleToScale", "ScalingActive")
    ]
    ready = [{"type": "Ready", "status": "True", "reason": "ScaledObjectReady", "message": "ready"}]
    scaled.api.set_status(SCALED_OBJECTS, scaled.name, SCALER, {"conditions": ready})
    counts = {"currentReplicas": 1, "desiredReplicas": 2, "conditions": conditions}
    scaled.api.set_status(AUTOSCALERS, scaled.name, KEDAS, counts)
    eventually(lambda: scaled.status("llama")["autoscaling"] == {"backend": "keda", "desired": 2})
    assert scaled.condition("llama", "Autoscaling")["reason"] == "Active"
    operator.wait_until_idle()
    before = operator.calls(), scaled.get(LLMSERVICES, "llama")["metadata"]["resourceVersion"]
    for second in range(5):
        now = f"2026-01-01T00:00:0{second}Z"
        scaled.api.set_status(AUTOSCALERS, scaled.name, KEDAS, {**counts, "lastScaleTime": now})
        scaled.api.set_status(SCALED_OBJECTS, scaled.name, SCALER, {"lastActiveTime": now})
    operator.wait_until_idle()
    assert (operator.calls(), scaled.get(LLMSERVICES, "llama")["metadata"]["resourceVersion"]) == before
