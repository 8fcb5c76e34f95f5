"""The operator has the rights that it uses and no others: its whole life, as the API server's audit log tells it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.cluster.control_plane import ControlPlane, start_control_plane
from e2e.cluster.kubeconfig import User
from quire_operator.api import parse_llmservice
from quire_operator.builders.circumstances import EVERYTHING, Circumstances
from quire_operator.builders.desired import desired_objects
from quire_operator.builders.identity import SERVICE_LABEL
from quire_operator.builders.strategic_merge import merge
from quire_operator.kubeapi.resources import (
    DEPLOYMENTS,
    EVENTS,
    LLMSERVICES,
    NETWORK_POLICIES,
    OPTIONAL_CHILDREN,
    PODS,
    SECRETS,
    Resource,
    resource_of,
)
from quire_operator.settings import Settings
from tests.operator.api_client import ApiClient, Namespace, eventually
from tests.operator.checkpoints import FACTS
from tests.operator.claims import jobs, make_claim, on_claim, say
from tests.operator.conftest import (
    REPOSITORY,
    StartOperator,
    grant,
    operators,
    prepare,
    program,
    program_folder,
)
from tests.operator.fake_node import crashing, serving
from tests.operator.hub import on_hub
from tests.operator.prefetch_job import complete, only_job

pytestmark = pytest.mark.control_plane

EVERYWHERE, SOMEWHERE = "an-operator-of-all-namespaces", "an-operator-of-two-namespaces"
SYSTEM = "quire-system"
PROMETHEUS = "--prometheus-address=http://prometheus:9090"
NOT_CALLED = {("serving.quire.dev", "llmservices/finalizers", "update")}
"""Asked for by the admission plugin that guards owner references, which is on here, whenever a child is made."""

OPTIONAL_DEFINITIONS = ("monitoring-crds", "keda-crds", "lws-crds")
_EVERY_FIELD: dict[str, Any] = {
    "replicas": 2,
    "model": {"tokenSecretRef": {"name": "hf", "key": "token"}},
    "cache": {"volume": {"size": "1Gi"}},
    "security": {"networkPolicy": {"allowedNamespaces": ["web"]}},
}
SPECS: dict[str, dict[str, Any]] = {
    "llama": _EVERY_FIELD,
    "keda": {"autoscaling": {"maxReplicas": 3}},
    "hpa": {"autoscaling": {"backend": "hpa", "maxReplicas": 3}},
    "local": {"cache": {"local": {"hostPath": "/mnt/models"}}},
    "group": {"parallelism": {"tensor": 2, "nodes": 2}, "engine": {"type": "vllm", "image": "vllm:v1"}},
}
"""Services that together ask for every kind of child."""

NOTHING: dict[str, Any] = {"suspend": True, "cache": None, "security": {"networkPolicy": None}}
"""Laid over any of them, it leaves no child."""

Right = tuple[str, str, str]
"""API group, resource with its subresource, verb."""


@dataclass(frozen=True)
class Call:
    """A request of the operator's, and how it was answered."""

    right: Right
    namespace: str
    code: int
    url: str


def calls(plane: ControlPlane, user: str) -> list[Call]:
    """What `user` has asked for so far, discovery left out: that is open to everybody."""
    entries = [json.loads(line) for line in plane.audit_log.read_text().splitlines() if line.endswith("}")]
    return [_call(entry) for entry in entries if entry["user"]["username"] == user and "objectRef" in entry]


def _call(entry: dict[str, Any]) -> Call:
    what = entry["objectRef"]
    resource = "/".join(part for part in (what["resource"], what.get("subresource")) if part)
    right = (what.get("apiGroup", ""), resource, entry["verb"])
    return Call(right, what.get("namespace", ""), entry["responseStatus"]["code"], entry["requestURI"])


def used(made: Sequence[Call]) -> set[Right]:
    """The rights without which these calls would have been refused."""
    rights = {call.right for call in made}
    # an apply of what is not there yet takes both rights, and is logged under one
    return rights | {(*call.right[:2], "create") for call in made if call.right[2] == "patch" and call.code == 201}


def granted(documents: Sequence[dict[str, Any]]) -> set[Right]:
    rules = [rule for document in documents for rule in document.get("rules", [])]
    return {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def roles(release: str, *settings: str) -> list[dict[str, Any]]:
    """The chart's roles and their bindings."""
    chart = REPOSITORY / "charts/quire-operator"
    command = [program("helm") / "helm", "template", release, chart, f"--namespace={SYSTEM}"]
    rendered = subprocess.run([*command, *(f"--set={s}" for s in settings)], capture_output=True, text=True, check=True)
    documents = [document for document in yaml.safe_load_all(rendered.stdout) if document]
    return [document for document in documents if document["apiVersion"].startswith("rbac.")]


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    program("etcd", "kube-apiserver", "kubectl", "helm")
    plane = start_control_plane(
        tmp_path_factory.mktemp("rights"),
        users=[User(name, ()) for name in (EVERYWHERE, SOMEWHERE)],
        audited=(EVERYWHERE, SOMEWHERE),
        admission=("OwnerReferencesPermissionEnforcement",),
    )
    yield plane
    plane.stop()


@pytest.fixture(scope="module")
def admin(plane: ControlPlane, hub: ThreadingHTTPServer) -> ApiClient:
    """The admin's client. Every optional API is served that children are made of."""
    api = prepare(plane)
    for resource in kinds(services(hub).values()) & set(OPTIONAL_CHILDREN):
        files = [
            file for name in OPTIONAL_DEFINITIONS for file in program_folder(name).glob(f"*_{resource.plural}.yaml")
        ]
        (definition,) = [yaml.safe_load(file.read_text()) for file in files]
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{definition['metadata']['name']}"
        api.apply(path, definition)
        eventually(lambda resource=resource: api.request("GET", resource.path()))
    for name in ("a", "b"):
        api.make_namespace(name)
        metadata = {"name": "hf", "namespace": name}
        api.create(SECRETS, {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": {"token": "t"}})
    return api


@pytest.fixture
def start(plane: ControlPlane, admin: ApiClient, tmp_path: Path) -> Iterator[StartOperator]:
    with operators(plane, tmp_path) as start:
        yield start


def services(hub: ThreadingHTTPServer) -> dict[str, dict[str, Any]]:
    """The services of SPECS, by name."""
    plain = on_hub(hub, memory=None)
    return {name: merge(plain, {"metadata": {"name": name}, "spec": spec}) for name, spec in SPECS.items()}


def kinds(bodies: Iterable[dict[str, Any]]) -> set[Resource]:
    """What these services become."""
    circumstances = Circumstances(Settings(prometheus_address="http://prometheus:9090"), EVERYTHING)
    return {resource_of(child) for body in bodies for child in desired_objects(parse_llmservice(body), circumstances)}


def left_in(namespace: Namespace, among: set[Resource]) -> set[Resource]:
    """The kinds of which there is a child that is there to stay: no controller here sees a deletion through."""
    return {
        resource
        for resource in among
        for item in namespace.api.list(resource, namespace.name)
        if SERVICE_LABEL in item["metadata"].get("labels", {}) and "deletionTimestamp" not in item["metadata"]
    }


def live(namespace: Namespace, hub: ThreadingHTTPServer) -> None:
    """Make services with all that there is, tamper with them, edit them until nothing is left, and delete them."""
    bodies = services(hub)
    expected = kinds(bodies.values())
    have_a_claim_inspected(namespace, "claimed")
    for body in bodies.values():
        namespace.create(body)
    complete(namespace, only_job(namespace))
    eventually(lambda: left_in(namespace, expected) == expected)
    eventually(lambda: namespace.api.list(EVENTS, namespace.name))
    namespace.api.patch(NETWORK_POLICIES, namespace.name, "llama-netpol", {"spec": {"egress": [{}]}})
    eventually(lambda: namespace.get(NETWORK_POLICIES, "llama-netpol")["spec"]["egress"] != [{}])
    fail_to_roll_out(namespace, "llama")
    for name in (*bodies, "claimed"):
        namespace.change(name, NOTHING)
    eventually(lambda: left_in(namespace, expected) == set() and not jobs(namespace))
    for name in (*bodies, "claimed"):
        namespace.message(name, "Suspended")
        namespace.api.delete(LLMSERVICES, namespace.name, name)


def have_a_claim_inspected(namespace: Namespace, name: str) -> None:
    """A service whose model is on a claim, where a Job reads it."""
    make_claim(namespace)
    namespace.create(on_claim(name))
    say(namespace, FACTS)
    eventually(lambda: namespace.status(name).get("plan"))
    eventually(lambda: not jobs(namespace))


def fail_to_roll_out(namespace: Namespace, name: str) -> None:
    """An edit whose pod crashes beside an older one that serves: there might be something to go back to."""
    pod = {"spec": {"containers": [{"name": "engine", "image": "quire/engine:test"}]}}
    pods = [namespace.add_pod(name, serving(pod), "old")]
    namespace.change(name, {"engine": {"maxNumSeqs": 9}})
    eventually(lambda: "--max-num-seqs=9" in json.dumps(namespace.get(DEPLOYMENTS, name)))
    pods.append(namespace.add_pod(name, crashing(pod), "new"))
    namespace.message(name, "ModelNotFound")
    for made in pods:
        namespace.api.request("DELETE", PODS.path(namespace.name, made["metadata"]["name"]), {"gracePeriodSeconds": 0})


def test_an_operator_of_all_namespaces_is_never_refused_and_needs_every_right_that_it_has(
    plane: ControlPlane, admin: ApiClient, start: StartOperator, hub: ThreadingHTTPServer
) -> None:
    documents = roles("wide", "planReadsTokens=true")
    for document in documents:
        grant(admin, document, EVERYWHERE)
    operator = start("--lease-name=wide-operator", "--plan-reads-tokens", PROMETHEUS, user=EVERYWHERE)
    operator.wait_until_leading()
    live(Namespace(admin, "a"), hub)
    assert operator.stop() == 0
    made = calls(plane, EVERYWHERE)
    assert [call for call in made if call.code in (401, 403)] == []
    assert used(made) == granted(documents) - NOT_CALLED


def test_an_operator_of_some_namespaces_stays_within_them_and_needs_every_right_that_it_has(
    plane: ControlPlane, admin: ApiClient, start: StartOperator, hub: ThreadingHTTPServer
) -> None:
    documents = roles("narrow", "planReadsTokens=true", "watchNamespaces={a,b}")
    assert {document["kind"] for document in documents} == {"Role", "RoleBinding"}
    for document in documents:
        grant(admin, document, SOMEWHERE)
    flags = (
        "--namespace=a",
        "--namespace=b",
        "--lease-name=narrow-operator",
        "--plan-reads-tokens",
        PROMETHEUS,
    )
    operator = start(*flags, user=SOMEWHERE)
    operator.wait_until_leading()
    live(Namespace(admin, "b"), hub)
    assert operator.stop() == 0
    made = calls(plane, SOMEWHERE)
    assert [call for call in made if call.code in (401, 403)] == []
    assert {call.namespace for call in made} == {"a", "b", SYSTEM}
    assert used(made) == granted(documents) - NOT_CALLED
