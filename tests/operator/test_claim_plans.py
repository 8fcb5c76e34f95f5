"""Plans of models on claims: read by a Job before anything starts, and never at the cost of being served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from e2e.cluster.control_plane import ControlPlane
from quire_engine.memory_plan.model_facts import ModelFacts
from quire_operator.api import ClaimSource, parse_llmservice
from quire_operator.builders.inspection import build_inspection_job
from quire_operator.kubeapi.client import Client
from quire_operator.kubeapi.resources import CLAIMS, DEPLOYMENTS, EVENTS, JOBS, PODS, Resource
from quire_operator.plan.gpu_memory import Skipped
from quire_operator.run import claim_models
from quire_operator.run.claim_models import ClaimModels
from tests.operator.api_client import Namespace, eventually
from tests.operator.checkpoints import FACTS, LLAMA_8B, write_checkpoint
from tests.operator.claims import jobs, make_claim, on_claim, say
from tests.operator.conftest import OPERATOR_USER
from tests.operator.operator_process import OperatorProcess
from tests.operator.services import SETTINGS

pytestmark = pytest.mark.control_plane

SOURCE = ClaimSource("models", "llama")
UID = "11111111-2222-3333-4444-555555555555"


@pytest.fixture(scope="module")
def facts_of_8b(tmp_path_factory: pytest.TempPathFactory) -> str:
    return ModelFacts.of_directory(write_checkpoint(tmp_path_factory.mktemp("8b"), LLAMA_8B)).to_json()


def test_a_model_that_fits_is_served_once_its_size_is_known(
    namespace: Namespace, operator: OperatorProcess, facts_of_8b: str
) -> None:
    make_claim(namespace)
    namespace.create(on_claim())
    add = eventually(lambda: jobs(namespace))
    assert add[0]["metadata"]["ownerReferences"][0]["name"] == "llama"
    assert namespace.find(DEPLOYMENTS, "llama") is None
    eventually(lambda: namespace.condition("llama", "Ready").get("reason") == "Planning")
    assert namespace.condition("llama", "Reconciling")["status"] == "True"  # or it would pass for finished
    assert namespace.condition("llama", "Accepted") == {}
    say(namespace, facts_of_8b)
    eventually(lambda: namespace.find(DEPLOYMENTS, "llama"))
    status = eventually(lambda: (s := namespace.status("llama")).get("plan") and s)
    assert status["plan"]["verdict"] == "Fits"
    assert status["plan"]["weightsBytes"] == 16_060_522_496
    assert status["model"]["parameters"] == 8_030_261_248
    eventually(lambda: not jobs(namespace))


def test_a_model_that_does_not_fit_is_refused_with_the_sum_before_anything_starts(
    namespace: Namespace, operator: OperatorProcess, facts_of_8b: str
) -> None:
    make_claim(namespace)
    namespace.create(on_claim(memory=16))
    say(namespace, facts_of_8b)
    condition = eventually(lambda: (c := namespace.condition("llama", "Accepted")).get("status") == "False" and c)
    assert condition["reason"] == "DoesNotFit"
    assert "weights 14.96 GiB" in condition["message"]
    assert namespace.find(DEPLOYMENTS, "llama") is None

    namespace.change("llama", {"resources": {"gpu": {"memoryGiB": 24}}})
    eventually(lambda: namespace.find(DEPLOYMENTS, "llama"))
    assert jobs(namespace) == []  # what is known needs no second look
    said = [event["message"] for event in namespace.api.list(EVENTS, namespace.name) if event["reason"] == "Planning"]
    assert len(said) == 1  # nor is it announced


def test_services_of_one_model_wait_for_one_job(namespace: Namespace, operator: OperatorProcess) -> None:
    make_claim(namespace)
    for name in ("llama", "alpaca", "vicuna"):
        namespace.create(on_claim(name))
    say(namespace, FACTS)
    for name in ("llama", "alpaca", "vicuna"):
        plan = eventually(lambda name=name: namespace.status(name).get("plan"))
        assert plan["verdict"] == "Fits"


def test_what_is_no_model_is_served_all_the_same_and_said_so(namespace: Namespace, operator: OperatorProcess) -> None:
    make_claim(namespace)
    namespace.create(on_claim())
    say(namespace, "/models/claim/llama has no config.json: name the directory of a checkpoint", code=1)
    eventually(lambda: namespace.find(DEPLOYMENTS, "llama"))
    plan = eventually(lambda: namespace.status("llama").get("plan"))
    assert (plan["verdict"], plan["reason"]) == ("Skipped", "UnknownModel")
    assert "has no config.json" in plan["message"]


def test_a_claim_that_is_not_there_is_not_waited_for(namespace: Namespace, operator: OperatorProcess) -> None:
    namespace.create(on_claim())
    eventually(lambda: namespace.find(DEPLOYMENTS, "llama"))
    plan = eventually(lambda: namespace.status("llama").get("plan"))
    assert (plan["verdict"], plan["reason"]) == ("Skipped", "InspectionFailed")
    assert jobs(namespace) == []


def test_without_a_plan_and_with_an_unknown_gpu_nothing_is_read(
    namespace: Namespace, operator: OperatorProcess
) -> None:
    make_claim(namespace)
    namespace.create(on_claim(plan="off"))
    unknown = on_claim("alpaca")
    unknown["spec"]["resources"]["gpu"] = {"count": 1, "resourceName": "amd.com/gpu"}
    namespace.create(unknown)
    for name in ("llama", "alpaca"):
        eventually(lambda name=name: namespace.find(DEPLOYMENTS, name))
    assert jobs(namespace) == []


class Asker:
    """Asks for one model on a claim in this process, with the operator's rights."""

    def __init__(self, client: Client, namespace: Namespace) -> None:
        self._told: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.models = ClaimModels(client, SETTINGS, self._told.put_nowait)
        self.service = parse_llmservice(
            on_claim() | {"metadata": {"name": "llama", "namespace": namespace.name, "uid": UID}}
        )

    def ask(self) -> ModelFacts | Skipped | None:
        return self.models.get(self.service, SOURCE)

    async def answer(self) -> ModelFacts | Skipped | None:
        """Ask, and again whenever told."""
        while (known := self.ask()) is None:
            await asyncio.wait_for(self._told.get(), 60)
        return known


@pytest.fixture
async def asker(
    namespace: Namespace, control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Asker]:
    monkeypatch.setenv("KUBECONFIG", str(control_plane.kubeconfig_of(OPERATOR_USER)))
    make_claim(namespace)
    async with Client() as client:
        asker = Asker(client, namespace)
        watches = [asyncio.create_task(loop) for loop in asker.models.loops()]
        yield asker
        await asker.models.close()
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)


async def test_a_job_that_takes_too_long_is_given_up_and_asked_again_later(
    asker: Asker, namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim_models, "_HOLD_SECONDS", 1.0)
    late = await asker.answer()
    assert isinstance(late, Skipped)
    assert late.reason == "NotReadYet"
    assert "the Job that reads it has no pod yet" in late.message
    assert jobs(namespace) == []  # nothing that holds a volume is left in the engine's way
    assert asker.ask() is late
    await asyncio.sleep(0.5)
    assert jobs(namespace) == []


async def test_a_job_that_an_operator_left_behind_is_taken_over(asker: Asker, namespace: Namespace) -> None:
    namespace.api.create(JOBS, build_inspection_job(asker.service, SOURCE, SETTINGS))
    (left,) = jobs(namespace)
    answer = asyncio.create_task(asker.answer())
    await asyncio.to_thread(say, namespace, FACTS)
    known = await answer
    assert isinstance(known, ModelFacts)
    assert known.longest == 512
    assert [job["metadata"]["uid"] for job in jobs(namespace)] in ([], [left["metadata"]["uid"]])


async def test_a_job_that_is_refused_keeps_nothing_from_being_served(asker: Asker, namespace: Namespace) -> None:
    quotas, hard = Resource("v1", "ResourceQuota", "resourcequotas"), {"count/jobs.batch": "0"}
    metadata = {"name": "none", "namespace": namespace.name}
    namespace.api.create(
        quotas, {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": metadata, "spec": {"hard": hard}}
    )
    namespace.api.set_status(quotas, namespace.name, "none", {"hard": hard, "used": hard})  # as its controller would
    refused = await asker.answer()
    assert isinstance(refused, Skipped)
    assert refused.reason == "InspectionFailed"
    assert "exceeded quota" in refused.message


async def test_a_claim_without_a_volume_is_not_bound_by_a_pod_that_needs_no_gpu(
    asker: Asker, namespace: Namespace
) -> None:
    namespace.api.set_status(CLAIMS, namespace.name, "models", {"phase": "Pending"})
    unbound = await asker.answer()
    assert isinstance(unbound, Skipped)
    assert unbound.reason == "NotReadYet"
    assert "claim models is Pending" in unbound.message
    assert jobs(namespace) == []


async def test_a_claim_that_was_made_anew_is_read_again(
    asker: Asker, namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def read(facts: str) -> int | None:
        answer = asyncio.create_task(asker.answer())
        await asyncio.to_thread(say, namespace, facts)
        known = await answer
        assert isinstance(known, ModelFacts)
        return known.longest

    monkeypatch.setattr(claim_models, "_CLAIM_SECONDS", 0.0)
    assert await read(FACTS) == 512
    for pod in namespace.api.list(PODS, namespace.name):
        namespace.api.delete(PODS, namespace.name, pod["metadata"]["name"])
    # nothing here takes the finalizer off that guards claims in use
    namespace.api.patch(CLAIMS, namespace.name, "models", {"metadata": {"finalizers": None}})
    namespace.api.delete(CLAIMS, namespace.name, "models")
    make_claim(namespace)
    for _ in range(600):  # what was known is given while the claim is looked at
        if asker.ask() is None:
            break
        await asyncio.sleep(0.1)
    assert await read(FACTS.replace("512", "1024")) == 1024


async def test_an_operator_that_leads_no_more_leaves_the_job_to_the_next(asker: Asker, namespace: Namespace) -> None:
    answer = asyncio.create_task(asker.answer())
    (job,) = await asyncio.to_thread(eventually, lambda: jobs(namespace))
    await asker.models.close()
    answer.cancel()
    assert [left["metadata"]["uid"] for left in jobs(namespace)] == [job["metadata"]["uid"]]
