"""Adapters of the hub, which are brought onto the cache's claim as the model is, before pods start."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import httpx
import pytest

from quire_operator.api import InvalidLLMServiceError, LLMService, parse_llmservice
from quire_operator.builders.cached_model import Download, downloads_of
from quire_operator.builders.pod import build_pod_template
from quire_operator.builders.prefetch_job import MODEL, build_prefetch_job
from quire_operator.kubeapi.resources import DEPLOYMENTS, LLMSERVICES, PODS
from quire_operator.plan.acceptance import refusal_of
from quire_operator.reconcile.cache_state import CacheState
from quire_operator.reconcile.faults import Fault
from quire_operator.reconcile.lost_models import loss_of
from quire_operator.reconcile.prefetching import DownloadState, Phase, Seen, download_state
from tests.operator.api_client import Namespace, Object, eventually
from tests.operator.claims import jobs, make_claim
from tests.operator.operator_process import OperatorProcess
from tests.operator.prefetch_job import (
    COMMIT,
    cached,
    complete,
    fail,
    job_for,
    only_job,
    owners,
    template,
    wanting,
)
from tests.operator.services import CIRCUMSTANCES, service

MODEL_SOURCE: dict[str, Any] = {"source": "hf://org/model", "revision": COMMIT}
SQL = {"name": "sql", "source": "hf://org/lora", "revision": "v1"}
ADAPTED = "ada" + "0" * 37
CLAIM = {"claimName": "models"}
CACHED = replace(CIRCUMSTANCES, cached_revision=COMMIT, cached_adapters={"sql": ADAPTED})
SNAPSHOT = f"/models/cache/hub/models--org--lora/snapshots/{ADAPTED}"


def adapted(engine: str = "quire", *adapters: Any, **spec: Any) -> LLMService:
    image = {"image": "a:1"} if engine != "quire" else {}
    wanted = {"model": MODEL_SOURCE | {"adapters": [*adapters] or [SQL]}, "engine": {"type": engine, **image}}
    return service(**wanted | {"cache": CLAIM} | spec)


def pod(built: LLMService, circumstances: Any = CACHED) -> dict[str, Any]:
    found: dict[str, Any] = build_pod_template(built, circumstances)
    return found


def variables(container: dict[str, Any]) -> dict[str, Any]:
    return {variable["name"]: variable.get("value") for variable in container["env"]}


def modules(container: dict[str, Any]) -> list[dict[str, str]]:
    args = container["args"]
    return [json.loads(text) for text in args[args.index("--lora-modules") + 1 :] if text.startswith("{")]


def test_pods_find_it_offline_at_its_commit_on_a_claim_that_they_cannot_write() -> None:
    found = pod(adapted())
    (container,) = found["spec"]["containers"]
    assert modules(container) == [{"name": "sql", "path": "org/lora", "revision": ADAPTED}]
    assert variables(container)["HF_HUB_OFFLINE"] == "1"
    assert {"name": "cache", "mountPath": "/models/cache", "readOnly": True} in container["volumeMounts"]
    assert found["metadata"]["annotations"]["serving.quire.dev/cached-adapters"] == ADAPTED


def test_engines_that_take_no_revision_of_one_get_its_directory() -> None:
    assert modules(pod(adapted("vllm"))["spec"]["containers"][0]) == [{"name": "sql", "path": SNAPSHOT}]
    named = {"name": "org/lora", "source": "hf://org/lora", "revision": "v1"}
    there = replace(CACHED, cached_adapters={"org/lora": ADAPTED})
    assert f"--lora-adapters=org/lora={SNAPSHOT}" in pod(adapted("tgi", named), there)["spec"]["containers"][0]["args"]
    alone = adapted("tgi", named, cache=None)
    assert "--lora-adapters=org/lora@v1" in pod(alone, CIRCUMSTANCES)["spec"]["containers"][0]["args"]


def test_a_model_of_another_claim_needs_no_hub_either_once_its_adapter_is_there() -> None:
    model = {"source": "pvc://weights/llama", "adapters": [SQL]}
    built = adapted(model=model)
    assert list(downloads_of(built, None)) == ["sql"]
    (container,) = pod(built, replace(CACHED, cached_revision=None))["spec"]["containers"]
    assert variables(container)["HF_HUB_OFFLINE"] == "1"
    assert {"name": "cache", "mountPath": "/models/cache", "readOnly": True} in container["volumeMounts"]


@pytest.mark.parametrize(
    ("spec", "circumstances"),
    [
        ({}, replace(CACHED, cached_adapters={})),
        ({"cache": None}, CIRCUMSTANCES),
        ({"cache": CLAIM | {"prefetch": False}}, CIRCUMSTANCES),
    ],
    ids=["not there yet", "no claim", "no Job"],
)
def test_pods_without_it_ask_the_hub_for_its_revision(spec: dict[str, Any], circumstances: Any) -> None:
    (container,) = pod(adapted(**spec), circumstances)["spec"]["containers"]
    assert "HF_HUB_OFFLINE" not in variables(container)
    assert modules(container) == [{"name": "sql", "path": "org/lora", "revision": "v1"}]


def test_a_node_has_a_copy_of_it_too() -> None:
    spec = pod(adapted(cache=CLAIM | {"local": {"hostPath": "/mnt/models"}}))["spec"]
    model, adapter = spec["initContainers"]
    assert (model["name"], adapter["name"]) == ("stage", "stage-adapter-0")
    assert adapter["command"] == [
        *("quire-engine", "prefetch", "org/lora", f"--revision={ADAPTED}", "--cache=/models/local", "--adapter"),
        "--from=/models/cache",
    ]
    (engine,) = spec["containers"]
    assert variables(engine)["HF_HUB_OFFLINE"] == "1"
    assert {"name": "local", "mountPath": "/models/local", "readOnly": True} in engine["volumeMounts"]


def test_its_job_takes_the_adapter_alone() -> None:
    built = adapted()
    download = downloads_of(built, None)["sql"]
    job = build_prefetch_job(built, download, CACHED, keep=["a" * 40])
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"] == [
        *("quire-engine", "prefetch", "org/lora", "--revision=v1", "--cache=/models/cache", "--progress-port=8001"),
        *("--adapter", "--keep-revisions=1", f"--keep={'a' * 40}"),
    ]
    assert "HF_HUB_OFFLINE" not in variables(container)
    assert {"name": "cache", "mountPath": "/models/cache"} in container["volumeMounts"]
    assert job["metadata"]["annotations"][MODEL] == "org/lora@v1"


def test_services_that_call_it_otherwise_share_a_download_which_is_not_the_models() -> None:
    (one,), (two,) = (
        [download for name, download in downloads_of(built, None).items() if name is not None]
        for built in (adapted(), adapted("quire", SQL | {"name": "queries"}))
    )
    assert one.job_name == two.job_name
    assert one.job_name != replace(one, is_adapter=False).job_name
    assert Download("default", "models", "org/model", "main").key == "98f3ee61d7a2579a"  # as before there were adapters


def test_a_revision_that_nothing_would_come_of_is_refused() -> None:
    with pytest.raises(InvalidLLMServiceError, match="revision belongs to an hf:// source"):
        adapted("quire", {"name": "sql", "source": "pvc://adapters/sql", "revision": "v1"})
    for cache in (None, CLAIM | {"prefetch": False}, {"local": {"hostPath": "/mnt"}}):
        refusal = refusal_of(adapted("vllm", cache=cache).spec)
        assert refusal is not None
        assert (refusal.reason, "spec.model.adapters[].revision" in refusal.message) == ("NotSupportedByEngine", True)
    assert refusal_of(adapted("vllm").spec) is None


def parts(**phases: Phase) -> Mapping[str | None, DownloadState]:
    found: dict[str | None, DownloadState] = {}
    for name, phase in phases.items():
        download = Download("default", "models", f"org/{name}", "main", is_adapter=name != "model")
        fault = Fault("Some", f"{name} is {phase}", phase == "Failed") if phase != "Ready" else None
        there = ADAPTED if phase == "Ready" else None
        found[None if name == "model" else name] = DownloadState(
            download=download, phase=phase, cached_revision=there, fault=fault, bytes=1, total=2
        )
    return found


def test_pods_wait_for_all_and_who_needs_somebody_speaks_first() -> None:
    state = CacheState(parts(model="Ready", sql="Downloading", poems="Failed"))
    assert (state.is_held, state.phase, state.cached_revision) == (True, "Failed", ADAPTED)
    assert state.fault == Fault("Some", "poems is Failed", True)
    assert (state.bytes, state.total) == (3, 6)
    there = CacheState(parts(model="Ready", sql="Ready"))
    assert (there.is_held, there.phase, there.fault) == (False, "Ready", None)
    assert str(there) == f"org/model at {ADAPTED}, adapter sql (org/sql at {ADAPTED}) are on claim models"


def test_one_whose_job_was_deleted_is_served_from_the_claim_until_it_is_looked_up_again() -> None:
    def earlier(**entry: str) -> str | None:
        there = {"name": "sql", "source": "hf://org/lora@v1", "commit": ADAPTED} | entry
        body = adapted().model_dump(by_alias=True, mode="json", exclude_none=True)
        built = parse_llmservice({**body, "status": {"cache": {"claimName": "models", "adapters": [there]}}})
        return download_state(built, downloads_of(built, None)["sql"], Seen(), 0.0, None, "sql").cached_revision

    assert earlier() == ADAPTED
    assert earlier(source="hf://org/lora@v2") is None
    assert earlier(name="queries") is None


def test_a_pod_that_lacks_one_has_that_one_downloaded_again_and_not_the_model() -> None:
    words = f"ModelNotCached: --lora-modules sql: org/lora at {ADAPTED} is not in the cache"
    ended = {"exitCode": 1, "message": words, "finishedAt": "2026-01-01T01:00:00Z"}
    metadata = {"name": "llama-x", "annotations": {"serving.quire.dev/template-hash": "new"}}
    lacking = {"metadata": metadata, "status": {"containerStatuses": [{"state": {"terminated": ended}}]}}
    done = {"type": "Complete", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    seen = Seen({"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}, "status": {"conditions": [done]}})
    lost = {
        name: loss_of(download, seen, None, [lacking], "new")
        for name, download in downloads_of(adapted(), None).items()
    }
    assert lost[None] is None
    assert lost["sql"] is not None
    assert "found no org/lora at v1 on claim models" in lost["sql"]


@pytest.fixture
def on_claim(namespace: Namespace) -> Namespace:
    """A namespace with the claim `models`."""
    make_claim(namespace)
    return namespace


def with_adapter(name: str = "llama", *adapters: Object) -> Object:
    return wanting(name, model=MODEL_SOURCE | {"adapters": [*adapters] or [SQL]})


def command(job: Object) -> list[str]:
    found: list[str] = job["spec"]["template"]["spec"]["containers"][0]["command"]
    return found


@pytest.mark.control_plane
def test_pods_start_once_model_and_adapter_are_on_the_claim(on_claim: Namespace, operator: OperatorProcess) -> None:
    on_claim.create(with_adapter())
    complete(on_claim, job_for(on_claim, COMMIT))
    condition = eventually(
        lambda: (c := on_claim.condition("llama", "ModelCached")).get("message", "").startswith("adapter sql: ") and c
    )
    assert "org/lora at v1 waits for a pod of Job" in condition["message"]
    assert on_claim.find(DEPLOYMENTS, "llama") is None

    complete(on_claim, job_for(on_claim, "v1"), ADAPTED)
    (container,) = eventually(lambda: template(on_claim))["spec"]["containers"]
    assert modules(container) == [{"name": "sql", "path": "org/lora", "revision": ADAPTED}]
    assert {"name": "HF_HUB_OFFLINE", "value": "1"} in container["env"]
    assert f"adapter sql (org/lora at {ADAPTED})" in cached(on_claim, "llama", "Cached")["message"]
    status = eventually(lambda: (s := on_claim.status("llama")["cache"])["phase"] == "Ready" and s)
    assert status["adapters"] == [{"name": "sql", "source": "hf://org/lora@v1", "commit": ADAPTED}]
    assert (status["commit"], status["bytes"]) == (COMMIT, 6 << 30)

    on_claim.roll_out("llama")
    eventually(lambda: on_claim.condition("llama", "Ready")["status"] == "True")
    operator.wait_until_idle()
    before = on_claim.get(LLMSERVICES, "llama")["metadata"]["resourceVersion"]
    operator.wait_until_idle()
    assert on_claim.get(LLMSERVICES, "llama")["metadata"]["resourceVersion"] == before


@pytest.mark.control_plane
def test_the_condition_names_the_adapter_that_cannot_be_had(on_claim: Namespace, operator: OperatorProcess) -> None:
    on_claim.create(with_adapter())
    complete(on_claim, job_for(on_claim, COMMIT))
    fail(on_claim, job_for(on_claim, "v1"), "ModelNotFound: org/lora is not at http://hub (404)")
    message = cached(on_claim, "llama", "ModelNotFound")["message"]
    assert message.startswith("adapter sql: ")
    assert "org/lora is not at http://hub (404)" in message
    eventually(lambda: on_claim.condition("llama", "Stalled")["reason"] == "ModelNotFound")
    assert on_claim.find(DEPLOYMENTS, "llama") is None


@pytest.mark.control_plane
def test_services_share_the_jobs_of_an_adapter_and_who_drops_it_leaves(
    on_claim: Namespace, operator: OperatorProcess
) -> None:
    on_claim.create(with_adapter("one"))
    on_claim.create(with_adapter("two", SQL | {"name": "queries"}))
    eventually(lambda: [owners(job) for job in jobs(on_claim)] == [{"one", "two"}] * 2)
    complete(on_claim, job_for(on_claim, COMMIT))
    complete(on_claim, job_for(on_claim, "v1"), ADAPTED)
    eventually(lambda: template(on_claim, "one") and template(on_claim, "two"))
    on_claim.change("one", {"model": {"adapters": []}})
    eventually(lambda: owners(job_for(on_claim, "v1")) == {"two"})
    assert owners(job_for(on_claim, COMMIT)) == {"one", "two"}
    on_claim.change("two", {"model": {"adapters": []}})
    eventually(lambda: [owners(job) for job in jobs(on_claim)] == [{"one", "two"}])


@pytest.mark.control_plane
def test_another_revision_leaves_the_one_that_is_served_on_the_claim(
    on_claim: Namespace, operator: OperatorProcess
) -> None:
    on_claim.create(with_adapter("one"))
    complete(on_claim, job_for(on_claim, COMMIT))
    complete(on_claim, job_for(on_claim, "v1"), ADAPTED)
    eventually(lambda: template(on_claim, "one"))
    before = on_claim.get(DEPLOYMENTS, "one")["metadata"]["resourceVersion"]
    on_claim.change("one", {"model": {"adapters": [SQL | {"revision": "v2"}]}})
    assert f"--keep={ADAPTED}" in command(job_for(on_claim, "v2"))
    assert cached(on_claim, "one", "Downloading")["message"].startswith("adapter sql: org/lora at v2 ")
    assert on_claim.get(DEPLOYMENTS, "one")["metadata"]["resourceVersion"] == before
    complete(on_claim, job_for(on_claim, "v2"), "b" * 40)
    eventually(lambda: modules(template(on_claim, "one")["spec"]["containers"][0])[0]["revision"] == "b" * 40)


@pytest.mark.control_plane
def test_an_adapter_of_the_hub_for_a_model_of_a_claim_is_cached_too(
    on_claim: Namespace, operator: OperatorProcess
) -> None:
    on_claim.create(wanting(model={"source": "pvc://weights/llama", "adapters": [SQL]}))
    complete(on_claim, job_for(on_claim, "v1"), ADAPTED)
    (container,) = eventually(lambda: template(on_claim))["spec"]["containers"]
    assert {"name": "HF_HUB_OFFLINE", "value": "1"} in container["env"]
    assert f"adapter sql (org/lora at {ADAPTED}) is on claim models" in cached(on_claim, "llama", "Cached")["message"]


@pytest.mark.control_plane
@pytest.mark.parametrize(
    ("adapter", "says"),
    [
        ({"name": "sql", "source": "pvc://adapters/sql"}, "a pvc:// source has none"),
        ({"name": "sql", "source": "pvc://adapters/sql", "revision": "v1"}, "revision belongs to an hf:// source"),
    ],
)
def test_the_api_server_refuses_what_no_hub_is_asked_for(on_claim: Namespace, adapter: Object, says: str) -> None:
    with pytest.raises(httpx.HTTPStatusError) as refused:
        on_claim.create(wanting(model={"source": "pvc://weights/llama", "adapters": [adapter]}))
    assert says in refused.value.response.text


@pytest.mark.control_plane
def test_what_a_pod_still_loads_stays_though_no_spec_names_it_any_more(
    on_claim: Namespace, operator: OperatorProcess
) -> None:
    leftover = {"serving.quire.dev/cached-adapters": f"{'d' * 40},{ADAPTED}"}
    on_claim.create(wanting("one"))
    complete(on_claim, only_job(on_claim))
    eventually(lambda: template(on_claim, "one"))
    metadata = {"name": "one-x", "namespace": on_claim.name, "annotations": leftover}
    metadata["labels"] = template(on_claim, "one")["metadata"]["labels"]
    containers = [{"name": "engine", "image": "quire/engine:test"}]
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": containers}}
    on_claim.api.create(PODS, body)
    operator.wait_until_idle()
    on_claim.create(with_adapter("two", SQL | {"revision": "v2"}))
    assert {f"--keep={'d' * 40}", f"--keep={ADAPTED}"} <= {*command(job_for(on_claim, "v2"))}
