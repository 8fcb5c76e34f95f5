"""The operator's release on a real cluster: its own test, an upgrade from the one before, removal and return."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e import release
from e2e.cluster.kubectl import Kubectl
from e2e.cluster.quire_images import OPERATOR, QuireImage
from e2e.llmservice import LLMService, tiny_spec, until
from e2e.load import Load
from e2e.target import Target

PREVIOUS = Path(__file__).parent / "previous" / "quire-0.1.0.tar.gz"
"""Chart and operator as they were: `git archive 312be98`, the engine but for its memory plan left out."""


@pytest.fixture
def no_replicas(kubectl: Kubectl, operator: str) -> Iterator[None]:
    """The operator scaled away."""
    scale = ("scale", "deployment/quire-operator", "-n", operator)
    kubectl(*scale, "--replicas=0")
    kubectl("wait", "pods", "-n", operator, "-l", "app.kubernetes.io/name=quire-operator", "--for=delete")
    yield
    kubectl(*scale, "--replicas=1")
    kubectl("rollout", "status", "deployment/quire-operator", "-n", operator, "--timeout=120s", timeout=150)


def test_helm_test_passes_on_a_release_that_works(kubectl: Kubectl, operator: str) -> None:
    assert "Phase:          Succeeded" in release.test(kubectl)


def test_helm_test_fails_with_the_reason_when_no_operator_runs(kubectl: Kubectl, no_replicas: None) -> None:
    with pytest.raises(release.UnhealthyError, match="no replica is ready"):
        release.test(kubectl)


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources of the version before."""
    folder = tmp_path_factory.mktemp("previous")
    with tarfile.open(PREVIOUS) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def previous_release(
    cluster: Target, kubectl: Kubectl, operator: str, operator_image: str, engine_image: str, previous: Path
) -> Iterator[None]:
    """The version before is what is installed; afterwards it is this tree's again."""
    old = QuireImage("operator-previous", OPERATOR.sources, root=previous, recipe="operator")
    image = cluster.provide(old)
    release.uninstall(kubectl)
    release.install(kubectl, image, engine_image, chart=previous / "charts/quire-operator")
    yield
    release.install(kubectl, operator_image, engine_image)


def names(service: LLMService) -> set[str]:
    return {pod["metadata"]["name"] for pod in service.pods()}


def restarts(service: LLMService) -> int:
    return sum(status["restartCount"] for pod in service.pods() for status in pod["status"]["containerStatuses"])


def acts(kubectl: Kubectl, service: LLMService, label: str) -> None:
    """Return once an operator has acted on the service: a label of its Service that was taken off is back."""
    kubectl("label", "service", service.name, "-n", service.namespace, f"{label}-")

    def is_back() -> bool:
        found = json.loads(kubectl("get", "service", service.name, "-n", service.namespace, "-o", "json"))
        return label in found["metadata"]["labels"]

    until(f"the label {label} back", is_back, 90)


def chart_version(root: Path) -> str:
    lines = (root / "charts/quire-operator/Chart.yaml").read_text().splitlines()
    return next(line.partition(": ")[2] for line in lines if line.startswith("version: "))


def claim_of(kubectl: Kubectl, service: LLMService) -> tuple[str, str]:
    """Which claim it is, and when it began to go."""
    found = json.loads(kubectl("get", "pvc", f"{service.name}-cache", "-n", service.namespace, "-o", "json"))
    return found["metadata"]["uid"], found["metadata"].get("deletionTimestamp", "")


def test_an_upgrade_a_removal_and_a_return_cut_no_request_and_replace_no_pod(
    kubectl: Kubectl, namespace: str, previous: Path, previous_release: None, operator_image: str, engine_image: str
) -> None:
    assert chart_version(previous) != chart_version(Path(__file__).parents[1])
    service = LLMService(kubectl, namespace, "kept")
    service.apply(tiny_spec(replicas=2, cache={"volume": {"size": "1Gi"}}))
    service.wait_ready()
    before, claim = names(service), claim_of(kubectl, service)
    with Load(service, clients=2) as load:
        until("answers", lambda: load.answered >= 4)
        release.install(kubectl, operator_image, engine_image)
        acts(kubectl, service, "app.kubernetes.io/managed-by")
        service.wait_ready()
        assert names(service) == before

        release.uninstall(kubectl)
        assert kubectl("get", "crd", "llmservices.serving.quire.dev", "-o", "name")
        assert service.condition("Ready")["status"] == "True"
        answered = load.answered
        until("answers without an operator", lambda: load.answered >= answered + 8)
        assert names(service) == before

        release.install(kubectl, operator_image, engine_image)
        acts(kubectl, service, "app.kubernetes.io/managed-by")
        service.wait_ready()
    assert load.failures == []
    assert names(service) == before
    assert restarts(service) == 0
    assert claim_of(kubectl, service) == claim
