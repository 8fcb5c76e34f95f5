"""A real etcd and kube-apiserver for the session, and the operator beside them as a process."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
import yaml

from e2e.cluster import binaries
from e2e.cluster.control_plane import ControlPlane, start_control_plane
from e2e.cluster.errors import ClusterError
from e2e.cluster.kubeconfig import User
from e2e.hub_server import make_server
from quire_operator.api import custom_resource_definition
from quire_operator.kubeapi.resources import PROMETHEUS_RULES, SERVICE_MONITORS
from tests.operator.api_client import ApiClient, Namespace, eventually
from tests.operator.checkpoints import SMALL, write_checkpoint
from tests.operator.operator_process import OperatorProcess

REPOSITORY = Path(__file__).resolve().parents[2]
OPERATOR_USER = "the-operator"

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"

StartOperator = Callable[..., OperatorProcess]

_numbers = itertools.count(1)


def program(*names: str) -> Path:
    """The folder of `names`; without a way to build them a skip, and in CI a failure."""
    return _or_skip(lambda: binaries.ensure(*names))


def program_folder(name: str) -> Path:
    """The folder of a module that a recipe names; without a way to get it a skip, and in CI a failure."""
    return _or_skip(lambda: binaries.folder(name))


def _or_skip(get: Callable[[], Path]) -> Path:
    if not shutil.which("go") and os.environ.get("CI") != "true":
        try:
            return get()
        except ClusterError as error:
            pytest.skip(str(error))
    return get()


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    program("etcd", "kube-apiserver", "kubectl")
    plane = start_control_plane(tmp_path_factory.mktemp("control-plane"), users=[User(OPERATOR_USER, ())])
    yield plane
    plane.stop()


@pytest.fixture(scope="session")
def api(control_plane: ControlPlane) -> ApiClient:
    """The admin's client. The CRD is there, and the operator's user has exactly the rights that are shipped."""
    return prepare(control_plane)


def prepare(control_plane: ControlPlane) -> ApiClient:
    """Install the CRD and the operator's rights, and return the admin's client."""
    authority = control_plane.authority.pair.certificate
    client = ApiClient(control_plane.server_url, authority, control_plane.users["admin"].token)
    crd = custom_resource_definition()
    client.apply(f"{DEFINITIONS}/{crd['metadata']['name']}", crd)
    client.make_namespace("quire-system")
    for body in yaml.safe_load_all((REPOSITORY / "manifests/base/rbac.yaml").read_text()):
        if body["kind"].startswith(("Role", "ClusterRole")):
            grant(client, body)
    eventually(lambda: client.request("GET", "/apis/serving.quire.dev/v1alpha1/llmservices"))
    return client


def grant(client: ApiClient, body: dict[str, object], user: str = OPERATOR_USER) -> None:
    """Apply a role or a binding of the operator's, which then binds `user`."""
    metadata = body["metadata"]
    assert isinstance(metadata, dict)
    if "subjects" in body:
        body["subjects"] = [{"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"}]
    below = f"namespaces/{metadata['namespace']}/" if "namespace" in metadata else ""
    plural = f"{str(body['kind']).lower()}s"
    client.apply(f"/apis/rbac.authorization.k8s.io/v1/{below}{plural}/{metadata['name']}", body)


@pytest.fixture
def namespace(api: ApiClient) -> Namespace:
    name = f"test-{next(_numbers)}"
    api.make_namespace(name)
    return Namespace(api, name)


@contextlib.contextmanager
def operators(control_plane: ControlPlane, directory: Path) -> Iterator[StartOperator]:
    """What starts operators, and ends those that are left: the next one has their Lease at once."""
    started: list[OperatorProcess] = []

    def start(
        *flags: str,
        user: str = OPERATOR_USER,
        kubeconfig: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> OperatorProcess:
        log = directory / f"operator-{len(started)}.log"
        # The tests' hub is one that services name themselves.
        path = kubeconfig or control_plane.kubeconfig_of(user)
        process = OperatorProcess(path, log, "--plan-reads-any-hub", *flags, environment=environment)
        started.append(process)
        return process

    try:
        yield start
    finally:
        for process in started:
            process.end()


@pytest.fixture
def start_operator(control_plane: ControlPlane, api: ApiClient, tmp_path: Path) -> Iterator[StartOperator]:
    """Start an operator for this test, with the rights of `user`: by default those that are shipped."""
    with operators(control_plane, tmp_path) as start:
        yield start


@pytest.fixture(scope="module")
def operator(
    control_plane: ControlPlane, api: ApiClient, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OperatorProcess]:
    """One operator for all namespaces, shared by a module's tests."""
    with operators(control_plane, tmp_path_factory.mktemp("operator")) as start:
        process = start("--engine-image=quire/engine:test")
        process.wait_until_leading()
        yield process


@pytest.fixture(scope="module")
def controllers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane with all controllers, and without a node."""
    program("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
    plane = start_control_plane(
        tmp_path_factory.mktemp("controllers"),
        components=("etcd", "apiserver", "controller-manager", "scheduler"),
        users=[User(OPERATOR_USER, ())],
    )
    yield plane
    plane.stop()


@pytest.fixture(scope="module")
def plane(controllers: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Namespace]:
    """The namespace `real` of it, with the operator at work."""
    api = prepare(controllers)
    api.make_namespace("real")
    with operators(controllers, tmp_path_factory.mktemp("operator")) as start:
        start().wait_until_leading()
        yield Namespace(api, "real")


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadingHTTPServer]:
    """A hub on loopback, with the small models org/small, org/other and org/quantized."""
    folder = tmp_path_factory.mktemp("hub")
    small, other = write_checkpoint(folder / "small", SMALL), write_checkpoint(folder / "other", SMALL, files=2)
    unknown = SMALL | {"quantization_config": {"quant_method": "modelopt"}}
    models = {"org/small": small, "org/other": other, "org/quantized": write_checkpoint(folder / "quantized", unknown)}
    server = make_server(models, host="127.0.0.1")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def gated_hub(tmp_path: Path) -> Iterator[ThreadingHTTPServer]:
    """A hub that wants the token `the-token`."""
    server = make_server(
        {"org/small": write_checkpoint(tmp_path / "gated", SMALL)}, host="127.0.0.1", token="the-token"
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def prometheus_operator(api: ApiClient) -> Iterator[None]:
    """Its CRDs, and in the end none, since other modules count on a bare API server."""
    paths = []
    for resource in (SERVICE_MONITORS, PROMETHEUS_RULES):
        (file,) = program_folder("monitoring-crds").glob(f"*_{resource.plural}.yaml")
        definition = yaml.safe_load(file.read_text())
        paths.append(f"{DEFINITIONS}/{definition['metadata']['name']}")
        api.apply(paths[-1], definition)
        eventually(functools.partial(api.request, "GET", resource.path()))
    yield
    for path in paths:
        api.request("DELETE", path)
        eventually(functools.partial(is_gone, api, path))


def is_gone(api: ApiClient, path: str) -> bool:
    """Whether the API server has nothing there any more."""
    try:
        api.request("GET", path)
    except httpx.HTTPStatusError as error:
        return error.response.status_code == 404
    return False
