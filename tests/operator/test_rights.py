"""The operator has the rights that it uses and no others: its whole life, as the API server's audit log tells it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.cluster.control_plane import ControlPlane, start_control_plane
from e2e.cluster.kubeconfig import User
from quire_operator.builders.strategic_merge import merge
from quire_operator.kubeapi.resources import (
    CHILDREN,
    DEPLOYMENTS,
    EVENTS,
    LLMSERVICES,
    NETWORK_POLICIES,
    OPTIONAL_CHILDREN,
    SECRETS,
    Resource,
)
from tests.operator.api_client import ApiClient, Namespace, eventually
from tests.operator.conftest import (
    REPOSITORY,
    StartOperator,
    grant,
    operators,
    prepare,
    program,
    program_folder,
)
from tests.operator.hub import on_hub

pytestmark = pytest.mark.control_plane

EVERYWHERE, SOMEWHERE = "an-operator-of-all-namespaces", "an-operator-of-two-namespaces"
SYSTEM = "quire-system"
NOT_CALLED = {("serving.quire.dev", "llmservices/finalizers", "update")}
"""Asked for by the admission plugin that guards owner references, which is on here, whenever a child is made."""

OPTIONAL_DEFINITIONS = ("monitoring-crds", "keda-crds", "lws-crds")
SPEC: dict[str, Any] = {
    "replicas": 2,
    "model": {"tokenSecretRef": {"name": "hf", "key": "token"}},
    "cache": {"volume": {"size": "1Gi"}},
    "security": {"networkPolicy": {"allowedNamespaces": ["web"]}},
}
"""Asks for every kind of child."""

LESS: dict[str, Any] = {"suspend": True, "cache": None, "security": {"networkPolicy": None}}
"""Laid over SPEC, it leaves none."""

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
def admin(plane: ControlPlane) -> ApiClient:
    """The admin's client. Every optional API is served that children are made of."""
    api = prepare(plane)
    for resource in kinds(granted(roles("wide"))) & set(OPTIONAL_CHILDREN):
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


def kinds(rights: set[Right]) -> set[Resource]:
    """What children are made of, by these rights."""
    resources = (*CHILDREN, *OPTIONAL_CHILDREN)
    return {r for r in resources if (r.api_version.rpartition("/")[0], r.plural, "create") in rights}


def left_of(namespace: Namespace, name: str, among: set[Resource]) -> set[Resource]:
    """The kinds of which a service has a child that is there to stay: no controller here sees a deletion through."""
    return {
        resource
        for resource in among
        for item in namespace.api.list(resource, namespace.name)
        if item["metadata"].get("labels", {}).get("serving.quire.dev/llmservice") == name
        and "deletionTimestamp" not in item["metadata"]
    }


def live(namespace: Namespace, hub: ThreadingHTTPServer, among: set[Resource]) -> None:
    """Make a service with all that there is, tamper with it, edit it until nothing is left, and delete it."""
    namespace.create(merge(on_hub(hub, memory=None), {"spec": SPEC}))
    eventually(lambda: left_of(namespace, "llama", among) == among)
    eventually(lambda: namespace.condition("llama", "Ready"))
    eventually(lambda: namespace.api.list(EVENTS, namespace.name))
    namespace.api.patch(NETWORK_POLICIES, namespace.name, "llama-netpol", {"spec": {"egress": [{}]}})
    eventually(lambda: namespace.get(NETWORK_POLICIES, "llama-netpol")["spec"]["egress"] != [{}])
    namespace.change("llama", {"engine": {"maxNumSeqs": 9}})
    eventually(lambda: "--max-num-seqs=9" in json.dumps(namespace.get(DEPLOYMENTS, "llama")))
    namespace.change("llama", LESS)
    eventually(lambda: left_of(namespace, "llama", among) == set())
    eventually(lambda: namespace.condition("llama", "Ready")["reason"] == "Suspended")
    namespace.api.delete(LLMSERVICES, namespace.name, "llama")


def test_an_operator_of_all_namespaces_is_never_refused_and_needs_every_right_that_it_has(
    plane: ControlPlane, admin: ApiClient, start: StartOperator, hub: ThreadingHTTPServer
) -> None:
    documents = roles("wide", "planReadsTokens=true")
    for document in documents:
        grant(admin, document, EVERYWHERE)
    operator = start("--lease-name=wide-operator", "--plan-reads-tokens", "--lease-seconds=3", user=EVERYWHERE)
    operator.wait_until_leading()
    live(Namespace(admin, "a"), hub, kinds(granted(documents)))
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
        "--lease-seconds=3",
    )
    operator = start(*flags, user=SOMEWHERE)
    operator.wait_until_leading()
    live(Namespace(admin, "b"), hub, kinds(granted(documents)))
    assert operator.stop() == 0
    made = calls(plane, SOMEWHERE)
    assert [call for call in made if call.code in (401, 403)] == []
    assert {call.namespace for call in made} == {"a", "b", SYSTEM}
    assert used(made) == granted(documents) - NOT_CALLED
