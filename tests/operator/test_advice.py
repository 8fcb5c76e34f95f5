"""Advice: each row by itself, what silences it, and that it is told once and changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from quire_engine.memory_plan.model_facts import ModelFacts
from quire_operator.api import PlanStatus
from quire_operator.cli import main
from quire_operator.kubeapi.resources import DEPLOYMENTS, EVENTS, LLMSERVICES
from quire_operator.plan.advice import Lengths, advice_of
from quire_operator.plan.gpu_memory import Device
from quire_operator.plan.service_plan import plan_of
from quire_operator.reconcile.children import Outcome
from quire_operator.reconcile.observation import Observation
from quire_operator.reconcile.status import status_of
from tests.operator.api_client import Namespace, eventually
from tests.operator.checkpoints import LLAMA_8B, write_checkpoint
from tests.operator.operator_process import OperatorProcess
from tests.operator.services import SETTINGS, manifest, service

GIB = 1 << 30
GOOD: dict[str, Any] = {"replicas": 2}
"""A spec that no advice is given for."""


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> ModelFacts:
    return ModelFacts.of_directory(write_checkpoint(tmp_path_factory.mktemp("llama"), LLAMA_8B, files=4))


def reasons(plan: PlanStatus | None = None, live: int | None = None, **spec: Any) -> list[str]:
    return [advice.reason for advice in advice_of(service(**{**GOOD, **spec}), plan, live)]


def planned(facts: ModelFacts, memory: int, tensor: int = 1, **spec: Any) -> PlanStatus:
    owner = service(resources={"gpu": {"count": None}}, parallelism={"tensor": tensor}, **spec)
    return plan_of(owner.spec, facts, Device("NVIDIA-TEST", memory * GIB, on_gpu=True))


def test_a_good_spec_gets_no_advice() -> None:
    assert reasons() == []


@pytest.mark.parametrize(
    ("spec", "live", "told"),
    [
        ({"replicas": 1}, None, True),
        ({"replicas": None}, None, True),
        ({"replicas": None}, 1, True),
        ({"replicas": None}, 2, False),
        ({"replicas": 0}, 0, False),
        ({"replicas": None}, 0, False),
        ({"replicas": None, "autoscaling": {"minReplicas": 1, "maxReplicas": 3}}, 1, False),
        ({"replicas": None, "autoscaling": {"minReplicas": 1, "maxReplicas": 1}}, 1, True),
    ],
)
def test_one_replica_only(spec: dict[str, Any], live: int | None, told: bool) -> None:
    assert reasons(live=live, **spec) == (["SingleReplica"] if told else [])


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"model": {"source": "hf://org/name"}}, True),
        ({"model": {"source": "hf://org/name"}, "cache": {"claimName": "models"}}, False),
        ({"model": {"source": "pvc://models/name"}}, False),
    ],
)
def test_a_hub_without_a_cache(spec: dict[str, Any], told: bool) -> None:
    assert reasons(**spec) == (["NoCache"] if told else [])


@pytest.mark.parametrize(("seconds", "told"), [(0, True), (119, True), (120, False)])
def test_a_short_drain(seconds: int, told: bool) -> None:
    assert reasons(rollout={"drainSeconds": seconds}) == (["ShortDrain"] if told else [])


@pytest.mark.parametrize(
    ("rollout", "told"),
    [
        ({"maxUnavailable": 1}, True),
        ({"maxUnavailable": "25%"}, True),
        ({"maxUnavailable": "0%"}, False),
        ({"strategy": "Recreate"}, True),
    ],
)
def test_fewer_replicas_during_a_rollout(rollout: dict[str, Any], told: bool) -> None:
    assert reasons(rollout=rollout) == (["UnavailableDuringRollout"] if told else [])


@pytest.mark.parametrize(("utilization", "told"), [(0.96, True), (1.0, True), (0.95, False)])
def test_no_headroom_of_memory(utilization: float, told: bool) -> None:
    assert reasons(engine={"gpuMemoryUtilization": utilization}) == (["NoMemoryHeadroom"] if told else [])


@pytest.mark.parametrize(("length", "told"), [(24576, True), (16384, False)])
def test_a_context_of_which_one_request_fits(llama: ModelFacts, length: int, told: bool) -> None:
    model = {"source": "hf://org/name", "maxModelLen": length}
    assert reasons(planned(llama, 24, model=model)) == (["LongContext"] if told else [])


def test_the_models_own_length_is_blamed_where_the_spec_sets_none(llama: ModelFacts) -> None:
    (advice,) = advice_of(service(**GOOD), planned(llama, 48))
    assert advice.reason == "LongContext"
    assert advice.message.startswith("the model's own length is 131072 tokens")


@pytest.mark.parametrize(
    ("limit", "longest", "told"),
    [(8000, 2000, True), (8000, 2001, False), (8000, 0, False), (8000, None, False), (None, 2000, False)],
)
def test_a_length_far_above_what_is_asked_for(limit: int | None, longest: int | None, told: bool) -> None:
    found = advice_of(service(**GOOD), None, lengths=Lengths(limit, longest))
    assert [advice.reason for advice in found] == (["UnusedLength"] if told else [])


@pytest.mark.parametrize(("generation", "kept"), [(1, True), (2, False)])
def test_what_was_said_of_lengths_stays_until_they_are_known_anew_or_the_spec_changes(
    generation: int, kept: bool
) -> None:
    owner = service(**GOOD)
    said = advice_of(owner, None, lengths=Lengths(8000, 100))
    status = owner.status.model_copy(update={"observed_generation": 1, "advice": said})
    metadata = owner.metadata.model_copy(update={"generation": generation})
    edited = owner.model_copy(update={"status": status, "metadata": metadata})
    assert advice_of(edited, None, lengths=Lengths(8000, None)) == (said if kept else [])


SHORT = {"source": "hf://org/name", "maxModelLen": 8192}


@pytest.mark.parametrize(("memory", "tensor", "told"), [(80, 2, True), (80, 1, False), (14, 2, False)])
def test_more_gpus_than_the_model_needs(llama: ModelFacts, memory: int, tensor: int, told: bool) -> None:
    assert ("TensorTooLarge" in reasons(planned(llama, memory, tensor, model=SHORT))) is told


@pytest.mark.parametrize(("memory", "tensor", "told"), [(14, 1, True), (14, 2, False), (24, 1, False), (1, 1, False)])
def test_fewer_gpus_than_the_model_needs(llama: ModelFacts, memory: int, tensor: int, told: bool) -> None:
    assert ("TensorTooSmall" in reasons(planned(llama, memory, tensor, model=SHORT))) is told


@pytest.mark.parametrize(
    ("engine", "memory", "tensor", "told"),
    [
        ("vllm", 14, 2, "fp8, the model would take 1 GPU a replica, where it takes 2 GPUs as it is"),
        ("vllm", 14, 1, "fp8, the model would take 1 GPU a replica, where it takes 2 GPUs as it is"),
        ("vllm", 12, 2, "awq, the model would take 1 GPU a replica, where it takes 2 GPUs as it is"),
        ("vllm", 8, 2, "fp8, the model would take 2 GPUs a replica, where it takes 4 GPUs as it is"),
        ("vllm", 24, 1, None),
        ("quire", 14, 1, "fp8, the model would take 1 GPU a replica, where it takes 2 GPUs as it is"),
        ("trtllm", 14, 2, None),  # takes quantized checkpoints as they are, and has no field for it
    ],
)
def test_a_quantized_checkpoint_on_fewer_gpus(
    llama: ModelFacts, engine: str, memory: int, tensor: int, told: str | None
) -> None:
    kind = {"type": engine, "image": "an/image:1"}
    plan = planned(llama, memory, tensor, model=SHORT, engine=kind)
    found = [a.message for a in advice_of(service(**GOOD), plan) if a.reason == "QuantizationWouldFit"]
    assert found == [] if told is None else told in found[0]


@pytest.mark.parametrize(
    ("silenced", "left"),
    [
        ("", ["SingleReplica", "ShortDrain"]),
        ("ShortDrain", ["SingleReplica"]),
        ("ShortDrain, SingleReplica", []),
        ("all", []),
        ("Other", ["SingleReplica", "ShortDrain"]),
    ],
)
def test_advice_that_is_silenced_is_not_given(silenced: str, left: list[str]) -> None:
    owner = service(replicas=1, rollout={"drainSeconds": 1})
    annotated = owner.metadata.model_copy(update={"annotations": {"serving.quire.dev/silence-advice": silenced}})
    found = advice_of(owner.model_copy(update={"metadata": annotated}), None)
    assert [advice.reason for advice in found] == left


def test_the_command_line_prints_advice_below_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "llama.yaml"
    file.write_text(yaml.safe_dump(manifest(replicas=1)))
    main(["plan", str(file)])
    plan, advice = capsys.readouterr().out.splitlines()
    assert plan.startswith("llama: not planned (NotPlanned)")
    assert advice.startswith("  SingleReplica: there is one replica")


def test_a_suspended_service_gets_no_advice() -> None:
    def advice(**spec: Any) -> int:
        return len(status_of(service(replicas=1, **spec), Observation(), Outcome(), None, SETTINGS, "x").advice)

    assert (advice(), advice(suspend=True)) == (1, 0)


@pytest.mark.control_plane
def test_advice_is_told_once_changes_no_condition_and_goes_when_it_is_silenced(
    namespace: Namespace, operator: OperatorProcess
) -> None:
    namespace.create(manifest(replicas=1))
    eventually(lambda: namespace.find(DEPLOYMENTS, "llama"))
    namespace.roll_out("llama")
    eventually(lambda: namespace.condition("llama", "Ready")["status"] == "True")
    assert [advice["reason"] for advice in namespace.status("llama")["advice"]] == ["SingleReplica"]
    types = [condition["type"] for condition in namespace.status("llama")["conditions"]]
    assert types == ["Ready", "Accepted", "Available"]

    namespace.change("llama", {"rollout": {"drainSeconds": 5}})
    eventually(lambda: len(namespace.status("llama")["advice"]) == 2)

    def warnings() -> list[str]:
        return sorted(e["reason"] for e in namespace.api.list(EVENTS, namespace.name) if e["type"] == "Warning")

    eventually(lambda: warnings() == ["ShortDrain", "SingleReplica"])

    silence = {"metadata": {"annotations": {"serving.quire.dev/silence-advice": "all"}}}
    namespace.api.patch(LLMSERVICES, namespace.name, "llama", silence)
    eventually(lambda: not namespace.status("llama").get("advice"))
