"""What stays though the spec no longer asks for it. Workloads of the other kind are in test_group_rollouts.py."""

from __future__ import annotations

from typing import Any

import pytest

from quire_operator.builders.desired import desired_objects
from quire_operator.kubeapi.client import Object
from quire_operator.reconcile.caching import HELD_BACK
from quire_operator.reconcile.changes import Delete, changes
from quire_operator.reconcile.needed import still_needed
from tests.operator.services import CIRCUMSTANCES, service

SERVES = {"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1, "readyReplicas": 1, "availableReplicas": 1}
VOLUME, CLAIM = {"volume": {"size": "1Gi"}}, {"claimName": "models"}
DEPLOYMENT = ("Deployment", "llama")


def cached(cache: dict[str, Any] | None, **spec: Any) -> Any:
    return service(model={"source": "hf://org/name"}, replicas=1, **({"cache": cache} if cache else {}), **spec)


def live(cache: dict[str, Any] | None, status: dict[str, Any] | None = None) -> dict[tuple[str, str], Object]:
    """The children of a service with this cache, beside the claim NAME-cache, as they are in the cluster."""
    workload = {child["kind"]: child for child in desired_objects(cached(cache), CIRCUMSTANCES)}["Deployment"]
    children = [child for child in desired_objects(cached(VOLUME), CIRCUMSTANCES) if child["kind"] != "Deployment"]
    for child in (*children, workload):
        child["metadata"] |= {"resourceVersion": "1", "generation": 1}
    workload["status"] = status or SERVES
    return {(child["kind"], child["metadata"]["name"]): child for child in (*children, workload)}


def deleted(wanted: Any, children: dict[tuple[str, str], Object], held: tuple[str, ...] = ()) -> list[str]:
    desired = [child for child in desired_objects(wanted, CIRCUMSTANCES) if child["kind"] not in held]
    needed = still_needed(wanted, children, [])
    return [c.kind for c in changes(wanted, desired, children, {}, held, needed) if isinstance(c, Delete)]


@pytest.mark.parametrize("cache", [CLAIM, None], ids=["another claim", "none"])
def test_a_claim_that_pods_mount_stays_while_the_model_is_brought_elsewhere(cache: dict[str, Any] | None) -> None:
    assert deleted(cached(cache), live(VOLUME), HELD_BACK) == []


@pytest.mark.parametrize(
    "status",
    [{**SERVES, "observedGeneration": 0}, {**SERVES, "replicas": 2}, {**SERVES, "availableReplicas": 0}],
    ids=["a rollout not yet taken up", "a pod of before that is left", "new pods that do not serve"],
)
def test_a_claim_stays_for_pods_of_before_during_the_rollout(status: dict[str, Any]) -> None:
    assert deleted(cached(CLAIM), live(CLAIM, status)) == []


def test_a_claim_goes_once_all_pods_are_of_a_template_that_does_not_mount_it() -> None:
    assert deleted(cached(CLAIM), live(CLAIM)) == ["PersistentVolumeClaim"]


def test_a_claim_that_a_stopped_rollout_serves_from_stays() -> None:
    assert deleted(cached(CLAIM), live(VOLUME)) == []


def test_a_claim_goes_with_a_suspended_service_that_no_longer_wants_it() -> None:
    assert "PersistentVolumeClaim" in deleted(cached(CLAIM, suspend=True), live(VOLUME))


def test_a_claim_that_nothing_was_started_from_goes_at_once() -> None:
    children = live(VOLUME)
    del children[DEPLOYMENT]
    assert deleted(cached(CLAIM), children, HELD_BACK) == ["PersistentVolumeClaim"]
