"""Claims that cannot be shared by all pods that a service may have at one time, and namespaces that forbid a volume."""

from __future__ import annotations

from typing import Any

import pytest

from quire_operator.api import LLMService, parse_llmservice
from quire_operator.plan.advice import advice_of
from quire_operator.plan.claim_modes import ClaimFacts, one_pod_only
from quire_operator.reconcile.environment import Environment, refusal_by_environment
from tests.operator.services import service

HUB: dict[str, Any] = {"model": {"source": "hf://org/name"}, "cache": {"claimName": "models"}}
ONE_AT_A_TIME: dict[str, Any] = {"replicas": 1, "rollout": {"strategy": "Recreate"}}
PINNED = {"scheduling": {"nodeSelector": {"kubernetes.io/hostname": "a"}}}


def advised(mode: str, **spec: Any) -> list[str]:
    found = advice_of(service(**HUB, **spec), None, 1, ClaimFacts("models", (mode,)))
    return [advice.reason for advice in found]


@pytest.mark.parametrize(
    ("mode", "spec", "is_advised"),
    [
        ("ReadWriteOnce", {}, True),
        ("ReadWriteOnce", {"replicas": 2, "rollout": {"strategy": "Recreate"}}, True),
        ("ReadWriteOnce", {"rollout": {"strategy": "Recreate"}, "autoscaling": {"maxReplicas": 3}}, True),
        ("ReadWriteOnce", ONE_AT_A_TIME, False),
        ("ReadWriteOnce", {"replicas": 1, "rollout": {"maxSurge": 0, "maxUnavailable": 1}}, False),
        ("ReadWriteOnce", PINNED, False),
        ("ReadWriteMany", {"replicas": 9}, False),
    ],
)
def test_pods_that_may_be_on_several_nodes_are_told_of_a_claim_of_one(
    mode: str, spec: dict[str, Any], is_advised: bool
) -> None:
    assert ("ClaimNotShared" in advised(mode, **spec)) is is_advised


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({}, "rollout: {strategy: Recreate}"),
        ({"rollout": {"strategy": "Recreate"}, "replicas": 2}, "more than one replica"),
        (ONE_AT_A_TIME, "cache.prefetch: false"),
        (ONE_AT_A_TIME | {"cache": {"claimName": "models", "prefetch": False}}, None),
    ],
)
def test_a_claim_of_one_pod_is_refused_where_there_would_be_two(spec: dict[str, Any], says: str | None) -> None:
    refusal = one_pod_only(service(**HUB | spec).spec, ClaimFacts("models", ("ReadWriteOncePod",)), 1)
    assert (refusal is None) is (says is None)
    if refusal is not None and says is not None:
        assert refusal.reason == "ClaimNotShared"
        assert says in refusal.message


@pytest.mark.parametrize(
    ("cache", "size", "is_advised"),
    [
        ({"volume": {"size": "200Gi"}}, "300Gi", True),
        ({"volume": {"size": "200Gi"}}, "204800Mi", False),
        ({"volume": {"size": "200Gi"}}, None, False),
        ({"claimName": "models"}, "300Gi", False),
    ],
)
def test_a_claim_that_stays_larger_than_asked_for_is_told(
    cache: dict[str, Any], size: str | None, is_advised: bool
) -> None:
    found = advice_of(service(**HUB | {"cache": cache}), None, 1, ClaimFacts("llama-cache", size=size))
    assert ("ClaimLarger" in [advice.reason for advice in found]) is is_advised


ON_NODES = {"cache": {"local": {"hostPath": "/mnt/models"}}}


@pytest.mark.parametrize(
    ("spec", "level", "is_refused"),
    [
        (ON_NODES, "restricted", True),
        (ON_NODES, "baseline", True),
        (ON_NODES, "privileged", False),
        (ON_NODES, None, False),
        ({"cache": {"local": {"ephemeralVolume": {"size": "1Gi"}}}}, "restricted", False),
        ({"cache": {"claimName": "models"}}, "restricted", False),
    ],
)
def test_a_directory_of_the_node_is_refused_where_pod_security_forbids_it(
    spec: dict[str, Any], level: str | None, is_refused: bool
) -> None:
    refusal = refusal_by_environment(service(**HUB | spec), Environment(pod_security=level), 1)
    assert (refusal is not None) is is_refused
    if refusal is not None:
        assert refusal.reason == "PodForbidden"
        assert "ephemeralVolume" in refusal.message


def accepted(built: LLMService) -> LLMService:
    body = built.model_dump(by_alias=True, mode="json", exclude_none=True)
    condition = {"type": "Accepted", "status": "True", "reason": "Valid", "observedGeneration": 1}
    condition |= {"lastTransitionTime": "2026-01-01T00:00:00Z"}
    return parse_llmservice({**body, "status": {"conditions": [condition]}})


def test_what_was_accepted_is_not_refused_later() -> None:
    environment = Environment(ClaimFacts("models", ("ReadWriteOncePod",)), "restricted")
    built = service(**HUB | ON_NODES)
    assert refusal_by_environment(built, environment, 1) is not None
    assert refusal_by_environment(accepted(built), environment, 1) is None
