"""What is said of a download, and what is done about its Job: pure functions of what was seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from quire_operator.api import LLMService, parse_llmservice
from quire_operator.builders.cached_model import Download, download_of
from quire_operator.builders.prefetch_job import build_prefetch_job
from quire_operator.reconcile.events import download_event
from quire_operator.reconcile.kept_revisions import overlooked
from quire_operator.reconcile.prefetch_jobs import Join, Leave, Make, Note, departures, job_changes
from quire_operator.reconcile.prefetching import DownloadState, Progress, Seen, download_state
from tests.operator.services import CIRCUMSTANCES, service

COMMIT, OLD = "a" * 40, "b" * 40
SPEC: dict[str, Any] = {"model": {"source": "hf://org/name"}, "cache": {"claimName": "models"}}
FAILED_AT = 1_767_225_600.0  # 2026-01-01T00:00:00Z


def wanted(built: LLMService, commit: str | None = None) -> Download:
    download = download_of(built, commit)
    assert download is not None
    return download


def with_status(built: LLMService, **status: Any) -> LLMService:
    body = built.model_dump(by_alias=True, mode="json", exclude_none=True)
    return parse_llmservice({**body, "status": status})


def acted_on(built: LLMService, generation: int = 1) -> LLMService:
    condition = {"type": "Accepted", "status": "True", "reason": "Valid", "observedGeneration": generation}
    return with_status(built, conditions=[condition | {"lastTransitionTime": "2026-01-01T00:00:00Z"}])


def job(*conditions: str, attempt: int = 0, uid: str = "", **annotations: str) -> dict[str, Any]:
    told = {f"serving.quire.dev/{name}": text for name, text in annotations.items()}
    found = [{"type": c, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"} for c in conditions]
    metadata = {"name": wanted(service(**SPEC)).job_name, "namespace": "default", "uid": "job"}
    # the map is inferred to hold text alone, and a manifest holds anything
    metadata |= {"annotations": {"serving.quire.dev/attempt": str(attempt), **told}}  # type: ignore[dict-item]
    metadata |= {"ownerReferences": [{"uid": uid, "name": "x"}]} if uid else {}  # type: ignore[dict-item]
    return {"metadata": metadata, "status": {"conditions": found}}


def pod(phase: str, code: int | None = None, message: str = "", created: str = "1") -> dict[str, Any]:
    status: dict[str, Any] = {"phase": phase}
    if code is not None:
        ended = {"exitCode": code, "message": message}
        status["containerStatuses"] = [{"name": "prefetch", "state": {"terminated": ended}}]
    return {"metadata": {"name": f"p{created}", "creationTimestamp": created}, "status": status}


def state(seen: Seen, built: LLMService | None = None) -> DownloadState:
    built = built or service(**SPEC)
    return download_state(built, wanted(built), seen, FAILED_AT)


@pytest.mark.parametrize(
    "spec",
    [
        {"model": {"source": "hf://org/name"}},
        {"model": {"source": "pvc://models/a"}},
        SPEC | {"cache": {"claimName": "models", "prefetch": False}},
        SPEC | {"suspend": True},
        SPEC | {"engine": {"env": [{"name": "HF_HUB_OFFLINE", "value": "1"}]}},
    ],
)
def test_who_has_no_claim_or_sees_to_it_alone_waits_for_nothing(spec: dict[str, Any]) -> None:
    assert download_of(service(**spec), COMMIT) is None


def test_the_same_model_on_the_same_claim_is_one_download() -> None:
    one = wanted(service("one", **SPEC), COMMIT)
    two = wanted(service("two", **SPEC | {"model": {"source": "hf://org/name", "revision": "v1"}}), COMMIT)
    assert one.job_name == two.job_name
    assert wanted(service(**SPEC), OLD).job_name != one.job_name
    assert wanted(service(**SPEC | {"cache": {"claimName": "other"}}), COMMIT).job_name != one.job_name


def test_a_pod_that_is_on_its_way_and_one_that_tells_how_far_it_is() -> None:
    pending = state(Seen(job(), [pod("Pending")]))
    assert (pending.phase, pending.cached_revision) == ("Pending", None)
    running = state(Seen(job(), [pod("Running")], Progress(1 << 30, 4 << 30)))
    assert (running.phase, running.bytes, running.total) == ("Downloading", 1 << 30, 4 << 30)
    assert running.fault is not None
    assert "1.00 GiB of 4.00 GiB of org/name at main are on claim models" in running.fault.message
    assert not running.fault.needs_action


def test_the_pod_that_tries_again_speaks_and_not_the_one_before() -> None:
    failed, running = pod("Failed", 1, "HubUnreachable: x", created="1"), pod("Running", created="2")
    assert state(Seen(job(), [running, failed])).phase == "Downloading"
    again = state(Seen(job(), [failed]))
    assert again.fault is not None
    assert (again.fault.reason, again.fault.needs_action) == ("HubUnreachable", False)


def test_a_job_that_gave_up_says_why_and_when_it_is_tried_again() -> None:
    failed = state(Seen(job("Failed"), [pod("Failed", 3, "ModelGated: the hub refuses org/name")]))
    assert failed.fault is not None
    assert (failed.phase, failed.fault.reason, failed.fault.needs_action) == ("Failed", "ModelGated", True)
    assert failed.retry_after == 60
    mute = state(Seen(job("Failed")))
    assert mute.fault is not None
    assert mute.fault.reason == "DownloadFailed"


def test_a_job_that_is_done_tells_the_commit_whoever_is_left_to_say_it() -> None:
    said = pod("Succeeded", 0, f'{{"commit": "{COMMIT}", "bytes": 5}}')
    for seen in (Seen(job("Complete"), [said]), Seen(job("Complete", commit=COMMIT, bytes="5"))):
        found = state(seen)
        assert (found.phase, found.cached_revision, found.bytes, found.fault) == ("Ready", COMMIT, 5, None)
    assert state(Seen(job("Complete"))).cached_revision == "main"


def test_a_commit_that_pods_load_already_is_served_until_the_next_is_there() -> None:
    cache = {"claimName": "models", "model": "hf://org/name@main", "commit": OLD}
    served = with_status(service(**SPEC), cache=cache)
    assert state(Seen(), served).cached_revision == OLD
    assert state(Seen(job("Failed")), served).cached_revision == OLD
    for other in ({"model": "hf://org/name@v1"}, {"claimName": "other"}):
        assert state(Seen(), with_status(service(**SPEC), cache=cache | other)).cached_revision is None


def todo(seen: Seen, built: LLMService | None = None, owned: Any = (), now: float = FAILED_AT) -> list[Any]:
    built = built or acted_on(service(**SPEC))
    download = download_of(built, None)

    def make(attempt: int, again: str | None) -> dict[str, Any]:
        return build_prefetch_job(built, wanted(built), CIRCUMSTANCES, attempt=attempt, again=again)

    downloads = [download] if download is not None else []
    return [
        *departures(built, downloads, owned),
        *(change for _ in downloads for change in job_changes(built, seen, make, now)),
    ]


UID = service().metadata.uid


def attempt_of(change: Make) -> str:
    found: str = change.manifest["metadata"]["annotations"]["serving.quire.dev/attempt"]
    return found


def test_a_job_is_made_once_joined_once_and_then_left_alone() -> None:
    assert [type(change) for change in todo(Seen())] == [Make]
    assert [type(change) for change in todo(Seen(job(uid="another")))] == [Join]
    assert todo(Seen(job(uid=UID))) == []
    assert todo(Seen(job("Complete", uid=UID, commit=COMMIT))) == []


def test_what_the_pod_said_is_noted_once() -> None:
    said = pod("Succeeded", 0, f'{{"commit": "{COMMIT}", "bytes": 5}}')
    assert todo(Seen(job("Complete", uid=UID), [said])) == [Note(job("Complete", uid=UID), COMMIT, 5)]
    assert todo(Seen(job("Complete", uid=UID))) == []


def test_a_job_that_is_no_longer_wanted_is_left() -> None:
    other = job(uid=UID)
    other["metadata"]["name"] = "quire-prefetch-other"
    assert todo(Seen(job(uid=UID)), owned=[other, job(uid=UID)]) == [Leave(other, UID)]
    suspended = acted_on(service(**SPEC | {"suspend": True}))
    assert todo(Seen(), suspended, owned=[other]) == [Leave(other, UID)]


def test_a_failed_job_is_tried_again_after_longer_and_longer() -> None:
    failed = Seen(job("Failed", uid=UID, attempt=2))
    assert todo(failed, now=FAILED_AT + 239) == []
    (again,) = todo(failed, now=FAILED_AT + 240)
    assert (again.replaced, attempt_of(again)) == (failed.job, "3")
    assert Seen(job("Failed", attempt=50)).retry_in(FAILED_AT) == 3600


def test_an_edit_has_a_failed_job_tried_again_at_once() -> None:
    edited = acted_on(service(**SPEC), generation=0)
    (again,) = todo(Seen(job("Failed", uid=UID, attempt=5)), edited)
    assert attempt_of(again) == "0"


def test_a_job_that_is_going_is_waited_for() -> None:
    going = job("Failed", uid=UID)
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert todo(Seen(going), now=FAILED_AT + 9999) == []


def test_a_job_that_would_remove_what_others_took_up_meanwhile_is_made_again() -> None:
    def unkept(*conditions: str, phases: Sequence[str] = (), **annotations: str) -> set[str]:
        seen = Seen(job(*conditions, **annotations), [{"status": {"phase": phase}} for phase in phases])
        return overlooked(wanted(service(**SPEC), COMMIT), seen, {COMMIT, OLD, "c" * 40})

    assert unkept() == {OLD, "c" * 40}
    assert unkept(keep=OLD) == {"c" * 40}
    assert unkept(keep=f"{OLD},{'c' * 40}") == set()
    assert unkept("Complete") == unkept("Failed") == set()  # one removes nothing any more, the other is made anew
    assert unkept(phases=["Pending"]) == {OLD, "c" * 40}
    assert unkept(phases=["Pending", "Running"]) == set()  # it has looked, and leaves what is taken up from then on
    assert unkept(phases=["Failed"]) == unkept(phases=["Failed", "Pending"]) == {OLD, "c" * 40}
    assert unkept(phases=["Failed", "Running"]) == {OLD, "c" * 40}  # what was taken up between the two
    built = acted_on(service(**SPEC))
    (again,) = job_changes(built, Seen(job(attempt=2, uid=UID)), lambda attempt, _: {"n": attempt}, 0.0, None, {OLD})
    assert again == Make({"n": 2}, job(attempt=2, uid=UID))


def container(**spec: Any) -> dict[str, Any]:
    built = service(**SPEC | spec)
    found: dict[str, Any] = build_prefetch_job(built, wanted(built), CIRCUMSTANCES)["spec"]["template"]["spec"]
    return found


def test_the_downloads_pod_runs_where_and_as_the_services_pods_do_without_their_gpus() -> None:
    gpu = {"count": 1, "product": "NVIDIA-H100-80GB-HBM3"}
    registry = {"spec": {"imagePullSecrets": [{"name": "registry"}]}}
    scheduling = {"nodeSelector": {"pool": "gpu"}, "tolerations": [{"key": "dedicated", "operator": "Exists"}]}
    pod = container(resources={"gpu": gpu}, scheduling=scheduling, podTemplate=registry)
    assert pod["nodeSelector"] == {"pool": "gpu"}
    assert {t["key"] for t in pod["tolerations"]} == {"dedicated", "nvidia.com/gpu"}
    assert "NVIDIA-H100-80GB-HBM3" in str(pod["affinity"])
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert "topologySpreadConstraints" not in pod
    (found,) = pod["containers"]
    assert "nvidia.com/gpu" not in str(found["resources"])
    assert found["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["securityContext"]["runAsNonRoot"] is True


def test_the_download_asks_the_services_hub_with_its_token_and_needs_no_other_secret() -> None:
    token = {"tokenSecretRef": {"name": "hf-token", "key": "token"}}
    env = [{"name": "HTTPS_PROXY", "value": "http://proxy"}]
    key = {"apiKeySecretRef": {"name": "llama-key", "key": "key"}}
    pod = container(model=SPEC["model"] | token, engine={"env": env}, security=key)
    names = {variable["name"] for variable in pod["containers"][0]["env"]}
    assert {"HF_HOME", "HF_TOKEN", "HTTPS_PROXY"} <= names
    assert "llama-key" not in str(pod)


def test_on_a_claim_of_one_node_the_download_runs_beside_the_pods() -> None:
    built = service(**SPEC, scheduling={"affinity": {"podAntiAffinity": {"a": []}}})
    job = build_prefetch_job(built, wanted(built), CIRCUMSTANCES, beside_pods=True)
    affinity = job["spec"]["template"]["spec"]["affinity"]
    (near,) = affinity["podAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert near["podAffinityTerm"]["labelSelector"]["matchLabels"]["serving.quire.dev/llmservice"] == "llama"
    assert affinity["podAntiAffinity"] == {"a": []}
    assert "podAffinity" not in str(container())


def test_another_engines_image_cannot_download_so_ours_does() -> None:
    pod = container(engine={"type": "vllm", "image": "vllm/vllm-openai:v0.11.0"})
    assert pod["containers"][0]["image"] == "quire/engine:test"


def test_another_engine_shares_no_verdict_on_the_format_of_weights_with_ours() -> None:
    ours, theirs = service(**SPEC), service(**SPEC | {"engine": {"type": "vllm", "image": "a:1"}})
    assert wanted(ours, COMMIT).job_name != wanted(theirs, COMMIT).job_name
    assert wanted(theirs, COMMIT) == wanted(service(**SPEC | {"engine": {"type": "tgi", "image": "a:1"}}), COMMIT)
    assert "--any-format" in container(engine={"type": "vllm", "image": "a:1"})["containers"][0]["command"]
    assert "--any-format" not in container()["containers"][0]["command"]


def event_for(before: int | None, after: int) -> bool:
    def cache(size: int | None) -> dict[str, Any]:
        return {"phase": "Downloading", "bytes": size, "totalBytes": 100} if size is not None else {"phase": "Pending"}

    told = with_status(service(**SPEC), cache=cache(before))
    return download_event(told, with_status(told, cache=cache(after)).status, "x") is not None


def test_an_event_tells_of_each_quarter_once() -> None:
    assert [size for size in range(1, 100) if event_for(size - 1, size)] == [25, 50, 75]
    assert event_for(None, 60)
    assert not event_for(None, 10)
