"""The pod that reads a model on a claim: where it runs, what it may do, and what is made of its last words."""

from __future__ import annotations

from typing import Any

import pytest

from quire_engine.memory_plan.model_facts import ModelFacts
from quire_operator.api import ClaimSource, LLMService, parse_source
from quire_operator.builders.identity import SERVICE_LABEL
from quire_operator.builders.inspection import INSPECTION_LABEL, build_inspection_job, inspection_of
from quire_operator.plan.gpu_memory import Skipped
from quire_operator.reconcile.inspection import facts_in, progress_of
from tests.operator.checkpoints import FACTS
from tests.operator.services import SETTINGS, service

SOURCE = ClaimSource("models", "llama")


def on_claim(**spec: Any) -> LLMService:
    return service(model={"source": "pvc://models/llama"}, **spec)


def pod_of(llmservice: LLMService) -> dict[str, Any]:
    source = parse_source(llmservice.spec.model.source)
    assert isinstance(source, ClaimSource)
    pod: dict[str, Any] = build_inspection_job(llmservice, source, SETTINGS)["spec"]["template"]["spec"]
    return pod


def test_it_sees_the_claim_alone_and_cannot_write_to_it() -> None:
    pod = pod_of(on_claim())
    (container,) = pod["containers"]
    assert pod["volumes"] == [{"name": "model", "persistentVolumeClaim": {"claimName": "models", "readOnly": True}}]
    assert container["volumeMounts"] == [{"name": "model", "mountPath": "/models/claim", "readOnly": True}]
    assert container["command"][:3] == ["quire-engine", "inspect", "/models/claim/llama"]


def test_it_has_no_token_and_no_secret() -> None:
    pod = pod_of(on_claim())
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert "serviceAccountName" not in pod  # the service's own may not be there yet
    assert "env" not in container


def test_it_runs_where_the_engine_can_and_takes_no_gpu() -> None:
    toleration = {"key": "dedicated", "value": "inference", "effect": "NoSchedule"}
    pod = pod_of(
        on_claim(
            resources={"gpu": {"count": 1, "product": "NVIDIA-L4"}},
            scheduling={"nodeSelector": {"pool": "gpus"}, "tolerations": [toleration], "priorityClassName": "high"},
            podTemplate={"spec": {"imagePullSecrets": [{"name": "registry"}], "securityContext": {"runAsUser": 7}}},
        )
    )
    assert pod["nodeSelector"] == {"pool": "gpus"}
    assert pod["tolerations"] == [toleration, {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert "nvidia.com/gpu.product" in str(pod["affinity"])
    assert pod["priorityClassName"] == "high"
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert pod["securityContext"]["runAsUser"] == 7
    assert "nvidia.com/gpu" not in str(pod["containers"])


def test_it_belongs_to_no_service_that_counts_or_routes_to_it_and_goes_with_the_one_that_asked() -> None:
    job = build_inspection_job(on_claim(), SOURCE, SETTINGS)
    for metadata in (job["metadata"], job["spec"]["template"]["metadata"]):
        assert SERVICE_LABEL not in metadata["labels"]
        assert metadata["labels"][INSPECTION_LABEL] == inspection_of(SOURCE)
    (owner,) = job["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"]) == ("LLMService", "llama")
    assert job["spec"]["backoffLimit"] == 0


def test_the_image_is_one_that_has_the_command() -> None:
    own = pod_of(on_claim(engine={"image": "registry/quire/engine:2"}))
    rivals = pod_of(on_claim(engine={"type": "vllm", "image": "vllm/vllm-openai:v0.20.0"}))
    assert own["containers"][0]["image"] == "registry/quire/engine:2"
    assert rivals["containers"][0]["image"] == "quire/engine:test"


def test_models_of_one_claim_are_told_apart_by_their_paths() -> None:
    sources = [SOURCE, ClaimSource("models", "qwen"), ClaimSource("models", ""), ClaimSource("others", "llama")]
    assert len({inspection_of(source) for source in sources}) == 4


def pod(phase: str = "Running", **state: Any) -> dict[str, Any]:
    return {"status": {"phase": phase, "containerStatuses": [{"name": "inspect", "state": state}] if state else []}}


def ended(code: int, message: str, reason: str = "Completed") -> dict[str, Any]:
    return pod("Succeeded", terminated={"exitCode": code, "message": message, "reason": reason})


def test_what_it_found_is_taken_from_its_last_words() -> None:
    facts = facts_in(ended(0, FACTS))
    assert isinstance(facts, ModelFacts)
    assert facts.longest == 512


def test_a_sidecar_that_was_injected_before_it_is_not_taken_for_it() -> None:
    found = ended(0, FACTS)
    found["status"]["containerStatuses"].insert(0, {"name": "proxy", "state": {"running": {}}})
    assert isinstance(facts_in(found), ModelFacts)


def test_another_pod_is_another_job_since_a_template_cannot_be_changed() -> None:
    tolerant = on_claim(scheduling={"tolerations": [{"key": "dedicated", "operator": "Exists"}]})
    names = [build_inspection_job(one, SOURCE, SETTINGS)["metadata"]["name"] for one in (on_claim(), tolerant)]
    assert names[0] != names[1]


@pytest.mark.parametrize("unfinished", [pod("Pending"), pod("Running", running={}), pod("Pending", waiting={})])
def test_as_long_as_it_runs_nothing_is_known(unfinished: dict[str, Any]) -> None:
    assert facts_in(unfinished) is None


@pytest.mark.parametrize(
    ("failed", "reason", "says"),
    [
        (ended(1, "a warning\n/models/claim/x has no config.json\n"), "UnknownModel", "/models/claim/x has no config"),
        (ended(2, "quire-engine: error: invalid choice: 'inspect'"), "InspectionFailed", "code 2: quire-engine: error"),
        (ended(137, "", "OOMKilled"), "InspectionFailed", "code 137: no last word"),
        (ended(0, '{"shape": 1}'), "InspectionFailed", "reads models in another way"),
        (ended(0, ""), "InspectionFailed", "reads models in another way"),
        (
            {"status": {"phase": "Failed", "reason": "Evicted", "message": "The node was low on memory"}},
            "InspectionFailed",
            "Evicted: The node was low on memory",
        ),
    ],
)
def test_a_failure_is_no_plan_and_says_why(failed: dict[str, Any], reason: str, says: str) -> None:
    found = facts_in(failed)
    assert isinstance(found, Skipped)
    assert found.reason == reason
    assert says in found.message


def test_what_it_waits_for_is_said() -> None:
    unscheduled = pod("Pending")
    unscheduled["status"]["conditions"] = [
        {"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available: 3 Insufficient cpu."}
    ]
    assert progress_of([]) == "the Job that reads it has no pod yet; its Events say why"
    assert "0/3 nodes are available" in progress_of([unscheduled])
    assert "ImagePullBackOff: no such image" in progress_of(
        [pod("Pending", waiting={"reason": "ImagePullBackOff", "message": "no such image"})]
    )
    assert progress_of([pod("Running", running={})]).endswith("it runs")
