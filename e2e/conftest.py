"""The cluster, the images on it and the operator in it, for every scenario."""

from __future__ import annotations

import os
from collections.abc import Iterator
from uuid import uuid4

import pytest

from e2e import demo, prepull, release
from e2e.cluster import node, teardown
from e2e.cluster.errors import ClusterError
from e2e.cluster.kubectl import Kubectl
from e2e.cluster.quire_images import ENGINE, OPERATOR
from e2e.target import OwnNode, Target, choose


@pytest.fixture(scope="session")
def cluster() -> Iterator[Target]:
    """The cluster that KUBECONFIG names, kind, or our own node, which is taken down again if this brought it up.

    Where the machine cannot have one: a failure in CI, a skip with the reason elsewhere.
    """
    try:
        target = choose()
        target.require()
    except ClusterError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))
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
