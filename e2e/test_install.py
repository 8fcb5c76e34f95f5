"""The operator's release on a real cluster: its own test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from e2e import release
from e2e.cluster.kubectl import Kubectl


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
