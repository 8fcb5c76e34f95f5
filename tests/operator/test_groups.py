"""A replica of several pods: one LeaderWorkerSet, a leader that serves, and workers that no request reaches."""

from __future__ import annotations

from typing import Any

import pytest

from quire_operator.api import LLMService
from quire_operator.builders.desired import desired_objects
from quire_operator.builders.engines import engine_of
from quire_operator.builders.leader_worker_set import build_leader_worker_set
from quire_operator.builders.workload import workload_reference
from tests.operator.services import CIRCUMSTANCES, service

RANKS = ["--nnodes=2", "--node-rank=$(LWS_WORKER_INDEX)", "--master-addr=$(LWS_LEADER_ADDRESS)"]
TEMPLATE_HASH = "serving.quire.dev/template-hash"


def group(**spec: Any) -> LLMService:
    """Two pods of two GPUs each."""
    base: dict[str, Any] = {
        "engine": {"type": "vllm", "image": "vllm/vllm-openai:v0.32.0"},
        "parallelism": {"tensor": 2, "pipeline": 2, "nodes": 2},
        "resources": {"gpu": {"count": 2}},
    }
    return service(**{**base, **spec})


def built(owner: LLMService) -> dict[str, Any]:
    found = build_leader_worker_set(owner, CIRCUMSTANCES)
    assert found is not None
    return found


def templates(owner: LLMService) -> tuple[dict[str, Any], dict[str, Any]]:
    parts = built(owner)["spec"]["leaderWorkerTemplate"]
    return parts["leaderTemplate"], parts["workerTemplate"]


def engine(template: dict[str, Any]) -> dict[str, Any]:
    container: dict[str, Any] = template["spec"]["containers"][0]
    return container


def test_a_group_takes_the_place_of_the_deployment_and_of_nothing_else() -> None:
    kinds = [(child["kind"], child["metadata"]["name"]) for child in desired_objects(group(), CIRCUMSTANCES)]
    assert kinds == [
        ("ServiceAccount", "llama-engine"),
        ("Service", "llama"),
        ("Service", "llama-pods"),
        ("PodDisruptionBudget", "llama-pdb"),
        ("LeaderWorkerSet", "llama-nodes"),
    ]
    assert "LeaderWorkerSet" not in [child["kind"] for child in desired_objects(service(), CIRCUMSTANCES)]
    assert "LeaderWorkerSet" not in [child["kind"] for child in desired_objects(group(suspend=True), CIRCUMSTANCES)]


def test_a_group_starts_as_one_and_any_pod_that_fails_takes_the_others_along() -> None:
    spec = built(group(replicas=3))["spec"]
    assert spec["replicas"] == 3
    assert spec["startupPolicy"] == "LeaderCreated"
    assert spec["leaderWorkerTemplate"]["size"] == 2
    assert spec["leaderWorkerTemplate"]["restartPolicy"] == "RecreateGroupOnPodRestart"
    assert spec["networkConfig"] == {"subdomainPolicy": "Shared"}
    assert "replicas" not in built(group())["spec"]


def test_only_the_leader_is_selected_by_services_and_asked_whether_it_is_ready() -> None:
    leader, worker = templates(group())
    services = [child for child in desired_objects(group(), CIRCUMSTANCES) if child["kind"] == "Service"]
    for child in services:
        assert child["spec"]["selector"].items() <= leader["metadata"]["labels"].items()
        assert not child["spec"]["selector"].items() <= worker["metadata"]["labels"].items()
    assert {"readinessProbe", "livenessProbe", "startupProbe", "ports", "lifecycle"} <= engine(leader).keys()
    assert not {"readinessProbe", "livenessProbe", "startupProbe", "ports", "lifecycle"} & engine(worker).keys()
    assert "prometheus.io/scrape" in leader["metadata"]["annotations"]
    assert "prometheus.io/scrape" not in worker["metadata"]["annotations"]


def test_what_watches_over_pods_watches_over_workers_too() -> None:
    owner = group(security={"networkPolicy": {"allowedNamespaces": ["web"]}})
    children = {child["kind"]: child.get("spec", {}) for child in desired_objects(owner, CIRCUMSTANCES)}
    labels = [template["metadata"]["labels"] for template in templates(owner)]
    policy = children["NetworkPolicy"]
    among_themselves = policy["ingress"][-1]["from"][0]["podSelector"]
    for selector in (children["PodDisruptionBudget"]["selector"], policy["podSelector"], among_themselves):
        assert [selects(selector, of) for of in labels] == [True, True]
    assert not selects(policy["podSelector"], {**labels[0], "app.kubernetes.io/component": "prefetch"})


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    found = all(labels.get(rule["key"]) in rule["values"] for rule in selector.get("matchExpressions", []))
    return found and selector["matchLabels"].items() <= labels.items()


def test_both_kinds_of_pods_are_as_hardened_and_take_as_many_gpus() -> None:
    leader, worker = templates(group())
    assert engine(leader)["securityContext"] == engine(worker)["securityContext"]
    assert leader["spec"]["securityContext"] == worker["spec"]["securityContext"]
    assert engine(leader)["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert engine(worker)["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert engine(leader)["volumeMounts"] == engine(worker)["volumeMounts"]


def test_one_hash_tells_of_a_change_of_either_kind_of_pod() -> None:
    def hashes(owner: LLMService) -> set[str]:
        return {template["metadata"]["annotations"][TEMPLATE_HASH] for template in templates(owner)}

    (before,), (again,) = hashes(group()), hashes(group())
    (drained,) = hashes(group(rollout={"drainSeconds": 7}))  # of the leader alone
    (larger,) = hashes(group(parallelism={"tensor": 2, "pipeline": 4, "nodes": 4}))
    assert before == again
    assert len({before, drained, larger}) == 3


def test_vllm_is_told_its_rank_and_only_the_leader_serves_http() -> None:
    leader, worker = templates(group(engine={"type": "vllm", "image": "a/b:1", "args": ["--own"]}))
    assert "--tensor-parallel-size=2" in engine(leader)["args"]
    assert "--pipeline-parallel-size=2" in engine(leader)["args"]
    assert engine(leader)["args"][-5:] == ["--distributed-executor-backend=mp", *RANKS, "--own"]
    assert engine(worker)["args"] == [*engine(leader)["args"][:-1], "--headless", "--own"]


def test_quires_engine_gets_the_same_ranks() -> None:
    found = engine_of(service(parallelism={"tensor": 2, "nodes": 2}, resources={"gpu": {"count": 1}}))
    assert [flag for flag in found.args if flag in RANKS] == RANKS
    assert found.worker_args == found.args


def test_any_other_engine_finds_its_rank_in_the_environment() -> None:
    leader, worker = templates(group(engine={"type": "custom", "image": "a/b:1", "command": ["serve"], "args": ["x"]}))
    for template in (leader, worker):
        variables = {variable["name"]: variable.get("value") for variable in engine(template)["env"]}
        assert variables["NODES"] == "2"
        assert variables["NODE_RANK"] == "$(LWS_WORKER_INDEX)"
        assert variables["LEADER_ADDRESS"] == "$(LWS_LEADER_ADDRESS)"
        assert (engine(template)["command"], engine(template)["args"]) == (["serve"], ["x"])


def test_one_pod_is_told_nothing_of_groups() -> None:
    for kind in ({"type": "vllm", "image": "a/b:1"}, {"type": "custom", "image": "a/b:1", "command": ["x"]}):
        found = engine_of(service(engine=kind))
        assert not any("LWS" in text for text in (*found.args, *found.variables.values()))


@pytest.mark.parametrize(
    ("rollout", "expected"),
    [
        ({}, {"maxSurge": 1, "maxUnavailable": 0}),
        ({"maxSurge": 0, "maxUnavailable": "25%"}, {"maxSurge": 0, "maxUnavailable": "25%"}),
        ({"strategy": "Recreate"}, {"maxSurge": 0, "maxUnavailable": "100%"}),
    ],
)
def test_groups_are_replaced_as_pods_would_be(rollout: dict[str, Any], expected: dict[str, Any]) -> None:
    strategy = built(group(rollout=rollout))["spec"]["rolloutStrategy"]
    assert strategy == {"type": "RollingUpdate", "rollingUpdateConfiguration": expected}


def test_a_pod_template_of_the_users_is_laid_over_both() -> None:
    template = {"metadata": {"labels": {"team": "search"}}, "spec": {"hostNetwork": True}}
    for found in templates(group(podTemplate=template)):
        assert found["metadata"]["labels"]["team"] == "search"
        assert found["spec"]["hostNetwork"] is True


def test_groups_are_kept_apart_where_the_spec_asks_for_it() -> None:
    key = "leaderworkerset.sigs.k8s.io/exclusive-topology"
    apart = group(parallelism={"tensor": 2, "pipeline": 2, "nodes": 2, "exclusiveTopology": "example.com/rack"})
    assert built(apart)["metadata"]["annotations"][key] == "example.com/rack"
    assert "annotations" not in built(group())["metadata"]


def test_schedulers_that_start_groups_as_a_whole_find_their_labels() -> None:
    owner = group()
    told = {"kueue.x-k8s.io/queue-name": "gpus", "team": "search"}
    asked = {"scheduling.volcano.sh/queue-name": "gpus", "kubectl.kubernetes.io/last-applied-configuration": "{}"}
    metadata = owner.metadata.model_copy(update={"labels": told, "annotations": asked})
    found = built(owner.model_copy(update={"metadata": metadata}))["metadata"]
    assert found["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert "team" not in found["labels"]
    assert found["annotations"] == {"scheduling.volcano.sh/queue-name": "gpus"}


def test_the_workload_is_what_is_scaled() -> None:
    assert workload_reference(group())["kind"] == "LeaderWorkerSet"
    assert workload_reference(group())["name"] == "llama-nodes"
