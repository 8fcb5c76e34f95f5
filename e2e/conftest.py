"""The cluster, the images on it and the operator in it, for every scenario."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import nullcontext
from typing import NoReturn
from uuid import uuid4

import pytest

from e2e import demo, prepull, release
from e2e.cluster import node, teardown
from e2e.cluster.addons import catalog
from e2e.cluster.addons.adapter import Adapter
from e2e.cluster.addons.addon import RunningNode
from e2e.cluster.addons.kwok import Kwok
from e2e.cluster.addons.prometheus import Prometheus
from e2e.cluster.errors import ClusterError
from e2e.cluster.kubectl import Kubectl
from e2e.cluster.quire_images import ENGINE, OPERATOR
from e2e.target import OwnNode, Target, choose


@pytest.hookimpl(wrapper=True, trylast=True)  # inside pytest's own wrapper, which begins to capture
def pytest_runtest_setup(item: pytest.Item) -> Generator[None]:
    """Let through what is said while fixtures are made, which can take minutes: pytest would keep it for failures."""
    capture = item.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else nullcontext():
        yield


@pytest.fixture(scope="session")
def cluster() -> Iterator[Target]:
    """The cluster that KUBECONFIG names, kind, or our own node, which is taken down again if this brought it up.

    Where the machine cannot have one: a failure in CI, a skip with the reason elsewhere.
    """
    try:
        target = choose()
        target.require()
    except ClusterError as error:
        _cannot(str(error))
    was_up = node.is_up()
    target.start()
    yield target
    if isinstance(target, OwnNode) and not was_up:
        teardown.down()


@pytest.fixture(scope="session")
def kubectl(cluster: Target) -> Kubectl:
    """kubectl against the cluster. What a demo left on a node of our own is removed: it holds half of the CPUs."""
    kubectl = Kubectl(cluster.start())
    if isinstance(cluster, OwnNode):
        kubectl.attempt("delete", "llmservices", "--all", "-n", demo.NAMESPACE)
    return kubectl


@pytest.fixture(scope="session")
def engine_image(cluster: Target, kubectl: Kubectl) -> str:
    """The engine's image as it is in the working tree, on the node already."""
    image = cluster.provide(ENGINE)
    prepull.pull(kubectl, image)
    return image


@pytest.fixture(scope="session")
def operator_image(cluster: Target) -> str:
    """The operator's image as it is in the working tree."""
    return cluster.provide(OPERATOR)


@pytest.fixture(scope="session")
def operator(kubectl: Kubectl, operator_image: str, engine_image: str) -> Iterator[str]:
    """The namespace of an operator that runs, with this tree's engine as its default. Removed if this installed it."""
    was_installed = release.is_installed(kubectl)
    release.install(kubectl, operator_image, engine_image)
    yield release.NAMESPACE
    if not was_installed:
        release.uninstall(kubectl)


@pytest.fixture(scope="session")
def prometheus(cluster: Target, kubectl: Kubectl) -> Prometheus:
    """Prometheus on our own node: it scrapes pods that are annotated for it and answers queries."""
    return Prometheus(_own(cluster, "prometheus"))


@pytest.fixture(scope="session")
def adapter(cluster: Target, prometheus: Prometheus) -> Adapter:
    """prometheus-adapter on our own node, with its default rule. A test that wants others starts it with them."""
    adapter = Adapter(_own(cluster, "adapter"))
    adapter.start()
    return adapter


@pytest.fixture(scope="session")
def kwok(cluster: Target) -> Kwok:
    """kwok on our own node: nodes that are added and taken away at once, and cost nothing."""
    return Kwok(_own(cluster, "kwok"))


@pytest.fixture(scope="session")
def keda(cluster: Target, kubectl: Kubectl) -> None:
    """KEDA, with its webhooks."""
    _provide("keda", "scaledobjects.keda.sh", cluster, kubectl)


@pytest.fixture(scope="session")
def monitoring_crds(cluster: Target, kubectl: Kubectl) -> None:
    """The kinds of prometheus-operator. On our own node nothing acts on them."""
    _provide("monitoring-crds", "servicemonitors.monitoring.coreos.com", cluster, kubectl)


@pytest.fixture(scope="session")
def lws(cluster: Target, kubectl: Kubectl) -> None:
    """LeaderWorkerSet."""
    _provide("lws", "leaderworkersets.leaderworkerset.x-k8s.io", cluster, kubectl)


@pytest.fixture(scope="session")
def network_policy(cluster: Target) -> None:
    """NetworkPolicies are enforced, which cannot be seen from outside: on our own node only."""
    _own(cluster, "network-policy")


@pytest.fixture
def namespace(kubectl: Kubectl) -> Iterator[str]:
    """A namespace for one test."""
    yield from _namespace(kubectl)


@pytest.fixture(scope="module")
def module_namespace(kubectl: Kubectl) -> Iterator[str]:
    """A namespace that the tests of one file share."""
    yield from _namespace(kubectl)


def _namespace(kubectl: Kubectl) -> Iterator[str]:
    name = f"e2e-{uuid4().hex[:8]}"
    kubectl("create", "namespace", name)
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


def _provide(addon: str, kind: str, cluster: Target, kubectl: Kubectl) -> None:
    """Start an add-on on our own node. Another cluster has it, known by a kind that it serves, or has it not."""
    if isinstance(cluster, OwnNode):
        catalog.start(addon)
    elif kubectl.attempt("get", "crd", kind).returncode:
        _cannot(f"the cluster does not serve {kind}: install {addon} there, or use the node of our own")


def _own(cluster: Target, addon: str) -> RunningNode:
    """Start an add-on that a test handles itself, as it can on our own node only."""
    if not isinstance(cluster, OwnNode):
        _cannot(f"the test starts, stops and configures {addon} itself, which takes a node of our own")
    catalog.start(addon)
    return RunningNode()


def _cannot(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
