"""The conditions, and that tools which read them by kstatus's rules come to the right end."""

from __future__ import annotations

from typing import Any

import pytest

from quire_operator.api import Condition, PlanStatus
from quire_operator.builders.scaling import Obstacle
from quire_operator.kubeapi.trimming import trim_pod
from quire_operator.plan.acceptance import Refusal, refusal_of
from quire_operator.reconcile.children import Outcome, Problem
from quire_operator.reconcile.conditions import Verdict, verdicts, with_times
from quire_operator.reconcile.events import transition_events
from quire_operator.reconcile.faults import Fault
from quire_operator.reconcile.observation import Observation
from quire_operator.reconcile.planning import Planned
from quire_operator.reconcile.replicas import count_replicas
from quire_operator.reconcile.status import planning_status, status_of
from tests.operator.services import SETTINGS, service

CRASH, FULL = Fault("ModelNotFound", "no such model", True), Fault("Unschedulable", "no GPU", False)


def deployment(wanted: int = 2, *, existing: int = 2, updated: int = 2, available: int = 2, lag: int = 0) -> Any:
    counts = {
        "replicas": existing,
        "updatedReplicas": updated,
        "availableReplicas": available,
        "readyReplicas": available,
    }
    return {
        "metadata": {"name": "llama", "generation": 2},
        "spec": {"replicas": wanted, "template": {"metadata": {}}},
        "status": {**counts, "observedGeneration": 2 - lag},
    }


def recreated(revision: str = "2", progress: str = "ReplicaSetUpdated", **counts: int) -> Any:
    live = deployment(**counts)
    live["metadata"]["annotations"] = {"deployment.kubernetes.io/revision": revision}
    live["spec"]["strategy"] = {"type": "Recreate"}
    live["status"]["conditions"] = [{"type": "Progressing", "status": "True", "reason": progress}]
    return live


def judged(live: Any = None, spec: dict[str, Any] | None = None, **facts: Any) -> dict[str, tuple[str, str]]:
    owner = service(**(spec or {}))
    replicas = count_replicas(owner, {("Deployment", "llama"): live} if live is not None else {})
    return {v.type: (str(v.holds), v.reason) for v in verdicts(owner, replicas, **facts)}


def test_all_replicas_serving_is_ready_and_nothing_else() -> None:
    assert judged(deployment()) == {
        "Ready": ("True", "Serving"),
        "Accepted": ("True", "Valid"),
        "Available": ("True", "Serving"),
    }


CASES: dict[str, tuple[dict[str, tuple[str, str]], dict[str, tuple[str, str]]]] = {
    "before the Deployment exists": (
        judged(),
        {"Ready": ("False", "Starting"), "Available": ("False", "NoReplicaReady"), "Reconciling": ("True", "Starting")},
    ),
    "a change not yet taken up": (
        judged(deployment(lag=1)),
        {"Ready": ("False", "RollingOut"), "Available": ("True", "Serving"), "Reconciling": ("True", "RollingOut")},
    ),
    "a rollout on its way": (
        judged(deployment(existing=3, updated=1)),
        {"Ready": ("False", "RollingOut"), "Available": ("True", "Serving"), "Reconciling": ("True", "RollingOut")},
    ),
    "scaling up": (
        judged(deployment(wanted=3)),
        {"Ready": ("False", "Scaling"), "Available": ("True", "Serving"), "Reconciling": ("True", "Scaling")},
    ),
    "a failing rollout while old pods serve": (
        judged(deployment(existing=3, updated=1), fault=CRASH),
        {"Ready": ("False", "ModelNotFound"), "Available": ("True", "Serving"), "Stalled": ("True", "ModelNotFound")},
    ),
    "nothing serves and somebody must act": (
        judged(deployment(available=0), fault=CRASH),
        {
            "Ready": ("False", "ModelNotFound"),
            "Available": ("False", "ModelNotFound"),
            "Stalled": ("True", "ModelNotFound"),
        },
    ),
    "nothing serves and it may pass": (
        judged(deployment(available=0), fault=FULL),
        {
            "Ready": ("False", "Unschedulable"),
            "Available": ("False", "Unschedulable"),
            "Reconciling": ("True", "Unschedulable"),
        },
    ),
    "all pods replaced at once": (
        judged(recreated(existing=0, updated=0, available=0)),
        {
            "Ready": ("False", "Recreating"),
            "Available": ("False", "Recreating"),
            "Reconciling": ("True", "Recreating"),
        },
    ),
    "a first start of what would be replaced at once": (
        judged(recreated(revision="1", available=0)),
        {"Ready": ("False", "Starting"), "Available": ("False", "NoReplicaReady"), "Reconciling": ("True", "Starting")},
    ),
    "scaling up from zero what would be replaced at once": (
        judged(recreated(progress="NewReplicaSetAvailable", available=0)),
        {"Ready": ("False", "Starting"), "Available": ("False", "NoReplicaReady"), "Reconciling": ("True", "Starting")},
    ),
    "a wish for no replica": (
        judged(deployment(0, existing=0, updated=0, available=0)),
        {"Ready": ("True", "ScaledToZero"), "Available": ("False", "ScaledToZero")},
    ),
    "a wish for no replica that is not carried out yet": (
        judged(None, {"replicas": 0}),
        {"Ready": ("False", "Scaling"), "Available": ("False", "NoReplicaReady"), "Reconciling": ("True", "Scaling")},
    ),
    "suspended": (
        judged(None, {"suspend": True}),
        {"Ready": ("False", "Suspended"), "Available": ("False", "Suspended")},
    ),
    "suspended with pods that finish": (
        judged(None, {"suspend": True}, leaving=2),
        {"Ready": ("False", "Suspended"), "Available": ("False", "Suspended"), "Reconciling": ("True", "Suspending")},
    ),
    "a child's name taken": (
        judged(None, problems=[Problem("NameConflict", "x")]),
        {
            "Ready": ("False", "NameConflict"),
            "Available": ("False", "NoReplicaReady"),
            "Stalled": ("True", "NameConflict"),
        },
    ),
    "refused while serving": (
        judged(deployment(), refusal=Refusal("NotSupportedYet", "x")),
        {
            "Ready": ("False", "NotSupportedYet"),
            "Accepted": ("False", "NotSupportedYet"),
            "Available": ("True", "Serving"),
            "Stalled": ("True", "NotSupportedYet"),
        },
    ),
}


@pytest.mark.parametrize(("found", "expected"), CASES.values(), ids=CASES.keys())
def test_conditions_are(found: dict[str, tuple[str, str]], expected: dict[str, tuple[str, str]]) -> None:
    assert found == {"Accepted": ("True", "Valid"), **expected}


@pytest.mark.parametrize("found", [found for found, _ in CASES.values()], ids=CASES.keys())
def test_nothing_is_ever_stalled_and_reconciling_at_once(found: dict[str, tuple[str, str]]) -> None:
    assert not {"Stalled", "Reconciling"} <= found.keys()
    if found["Ready"][0] == "True":
        assert not {"Stalled", "Reconciling"} & found.keys()


SLEEPY = {"autoscaling": {"minReplicas": 0, "maxReplicas": 2, "triggers": [{"type": "cron"}]}}


@pytest.mark.parametrize(
    ("reason", "also"),
    [
        ("KedaMissing", {"Stalled": ("True", "KedaMissing")}),
        ("MetricsUnavailable", {"Reconciling": ("True", "MetricsUnavailable")}),
        ("Paused", {}),
    ],
)
def test_asleep_with_nothing_to_wake_it_is_not_ready(reason: str, also: dict[str, tuple[str, str]]) -> None:
    asleep = deployment(0, existing=0, updated=0, available=0)
    found = judged(asleep, SLEEPY, scaling=Verdict("Autoscaling", False, reason, "words"))
    told = {"Ready": ("False", reason), "Accepted": ("True", "Valid"), "Available": ("False", reason)}
    assert found == {**told, **also}
    assert judged(asleep, SLEEPY, scaling=Verdict("Autoscaling", True, "Idle", "words"))["Ready"][0] == "True"


def test_a_sleeping_service_whose_scaler_was_lost_is_told_how_to_wake_it() -> None:
    asleep = {("Deployment", "llama"): deployment(0, existing=0, updated=0, available=0)}
    observation = Observation(asleep, scaling_obstacle=Obstacle("PrometheusUnknown", "set serverAddress"))
    status = status_of(service(**SLEEPY), observation, Outcome(), None, SETTINGS, "x")
    ready = next(condition for condition in status.conditions if condition.type == "Ready")
    assert (ready.status, ready.reason) == ("False", "PrometheusUnknown")
    assert "set serverAddress" in ready.message
    assert "`kubectl scale deployment/llama -n default --replicas=1`" in ready.message


def test_what_is_not_wanted_is_not_said_to_start() -> None:
    owner = service(replicas=0)
    told = [v.message for v in verdicts(owner, count_replicas(owner, {})) if v.type == "Ready"]
    assert told == ["no replica is wanted: that has yet to be taken up"]


def test_a_conditions_time_is_that_of_its_last_change_of_status() -> None:
    (first,) = with_times([Verdict("Ready", False, "Starting", "a")], [], 1, "2026-01-01T00:00:00Z")
    (second,) = with_times([Verdict("Ready", False, "Scaling", "b")], [first], 2, "2026-01-02T00:00:00Z")
    (third,) = with_times([Verdict("Ready", True, "Serving", "c")], [second], 2, "2026-01-03T00:00:00Z")
    times = [condition.last_transition_time[:10] for condition in (first, second, third)]
    assert times == ["2026-01-01", "2026-01-01", "2026-01-03"]
    assert (second.reason, second.observed_generation) == ("Scaling", 2)


def test_a_status_that_says_nothing_new_is_equal_so_that_it_is_not_written() -> None:
    observation = Observation({("Deployment", "llama"): deployment()})
    first = status_of(service(), observation, Outcome(), None, SETTINGS, "2026-01-01T00:00:00Z")
    later = service().model_copy(update={"status": first})
    assert status_of(later, observation, Outcome(), None, SETTINGS, "2026-02-02T00:00:00Z") == first


FOUR = {"parallelism": {"tensor": 4}, "resources": {"gpu": {"count": 4, "product": "NVIDIA-L4"}}}


def pod_of(gpus: int, phase: str = "Running", resource: str = "nvidia.com/gpu") -> dict[str, Any]:
    """A pod as it is kept."""
    limits = {"memory": "4Gi", **({resource: str(gpus)} if gpus else {})}
    container = {"name": "engine", "resources": {"limits": limits, "requests": limits}}
    manifest = {"metadata": {"name": "x"}, "spec": {"containers": [container, {}]}, "status": {"phase": phase}}
    return trim_pod(manifest)


@pytest.mark.parametrize(
    ("pods", "gpus"),
    [
        ([pod_of(4), pod_of(4, "Pending")], 8),
        ([pod_of(4), pod_of(2)], 6),
        ([pod_of(4), pod_of(4, "Failed")], 4),
        ([pod_of(4), pod_of(1, resource="nvidia.com/mig-3g.40gb")], 5),
        ([pod_of(4), pod_of(1, resource="rdma/hca")], 4),
        ([pod_of(0)], 0),
        ([], 0),
    ],
    ids=["two", "one of before", "an evicted one", "one that had a slice", "another device", "none on the CPU", "none"],
)
def test_gpus_are_those_that_pods_hold_whatever_the_spec_asks_for_now(pods: list[Any], gpus: int) -> None:
    assert status_of(service(**FOUR), Observation({}, pods), Outcome(), None, SETTINGS, "x").gpus == gpus


def test_the_status_of_a_refused_edit_is_of_what_is_served() -> None:
    observation = Observation({("Deployment", "llama"): deployment()}, [pod_of(4), pod_of(4)])
    before = status_of(service(**FOUR), observation, Outcome(), None, SETTINGS, "x", Planned(commit="a" * 40))
    edit = {
        "model": {"source": "hf://org/large", "name": "large"},
        "service": {"port": 80},
        "parallelism": {"tensor": 8},
        "resources": {"gpu": {"count": 8, "product": "NVIDIA-H200"}},
    }
    edited = service(**edit).model_copy(update={"status": before})
    plan = PlanStatus(verdict="DoesNotFit", device="NVIDIA-H200")
    after = status_of(edited, observation, Outcome(), Refusal("DoesNotFit", "x"), SETTINGS, "x", Planned(plan=plan))
    assert (after.url, after.model, after.gpus, after.gpu_product) == (before.url, before.model, 8, "NVIDIA-L4")
    assert before.model is not None
    assert before.model.revision == "a" * 40
    assert after.plan == plan


def test_a_new_service_that_is_refused_has_neither_address_nor_model() -> None:
    status = status_of(service(**FOUR), Observation(), Outcome(), Refusal("DoesNotFit", "x"), SETTINGS, "x")
    assert (status.url, status.model, status.gpus, status.gpu_product) == (None, None, 0, None)


@pytest.mark.parametrize(
    ("spec", "device", "product"),
    [
        (FOUR, "NVIDIA-L4", "NVIDIA-L4"),
        ({"resources": {"gpu": {"count": 1}}}, "NVIDIA-H100-80GB-HBM3", "NVIDIA-H100-80GB-HBM3"),
        ({"resources": {"gpu": {"count": 1}}}, None, None),
        ({}, "CPU", None),
    ],
)
def test_the_product_is_that_of_the_spec_or_what_the_plan_found(
    spec: dict[str, Any], device: str | None, product: str | None
) -> None:
    planned = Planned(plan=PlanStatus(verdict="Fits", device=device) if device else None)
    found = status_of(service(**spec), Observation(), Outcome(), None, SETTINGS, "x", planned)
    assert found.gpu_product == product


def test_only_a_commit_is_reported_as_the_revision_that_is_served() -> None:
    def revision(text: str) -> str | None:
        owner = service(model={"source": "hf://a/b", "revision": text})
        model = status_of(owner, Observation(), Outcome(), None, SETTINGS, "x").model
        return model.revision if model else None

    assert revision("main") is None
    assert revision("0123456789abcdef0123456789abcdef01234567") == "0123456789abcdef0123456789abcdef01234567"


def ready(status: str, reason: str) -> list[Condition]:
    return with_times([Verdict("Ready", status == "True", reason, "words")], [], 1, "2026-01-01T00:00:00Z")


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ([], ready("False", "Starting"), ("Normal", "Starting")),
        (ready("False", "Starting"), ready("False", "Starting"), None),
        (ready("False", "Starting"), ready("True", "Serving"), ("Normal", "Serving")),
        (ready("True", "Serving"), ready("False", "OOMKilled"), ("Warning", "OOMKilled")),
    ],
)
def test_an_event_tells_of_a_transition_and_of_nothing_else(
    before: list[Condition], after: list[Condition], told: tuple[str, str] | None
) -> None:
    events = transition_events(service(), before, after, "2026-01-01T00:00:00Z")
    assert [(event["type"], event["reason"]) for event in events] == ([told] if told else [])


def test_scaling_that_goes_its_way_makes_no_events_and_scaling_that_stops_does() -> None:
    def scaling(status: str, reason: str) -> list[Condition]:
        return with_times([Verdict("Autoscaling", status == "True", reason, "words")], [], 1, "2026-01-01T00:00:00Z")

    def told(before: list[Condition], after: list[Condition]) -> list[str]:
        return [event["reason"] for event in transition_events(service(), before, after, "2026-01-01T00:00:00Z")]

    active, most, out = scaling("True", "Active"), scaling("True", "AtMaximum"), scaling("False", "MetricsUnavailable")
    assert told(active, most) == told(most, active) == []
    assert told([], active) == ["Active"]
    assert told(active, out) == ["MetricsUnavailable"]
    assert told(out, most) == ["AtMaximum"]


NOT_YET: dict[str, dict[str, Any]] = {
    "spec.model.kvCacheDtype": {"model": {"kvCacheDtype": "fp8"}},
    "spec.engine.speculative": {"engine": {"speculative": {"method": "ngram"}}},
}


@pytest.mark.parametrize(("field", "spec"), NOT_YET.items(), ids=NOT_YET.keys())
def test_a_field_without_its_machinery_is_refused_by_name(field: str, spec: dict[str, Any]) -> None:
    refusal = refusal_of(service(**spec).spec)
    assert refusal is not None
    assert refusal.reason == "NotSupportedYet"
    assert f"{field} (" in refusal.message


def test_defaults_are_never_refused() -> None:
    defaults = {
        "monitoring": {"interval": "15s", "serviceMonitor": "auto"},
        "plan": "enforce",
        "engine": {"type": "quire"},
    }
    assert refusal_of(service(**defaults).spec) is None


def test_an_edit_whose_plan_is_awaited_is_under_way_and_what_was_said_of_the_rest_stays() -> None:
    owner, live = service(), {("Deployment", "llama"): deployment()}
    told = [Verdict("Ready", True, "Serving", ""), Verdict("Accepted", True, "Valid", "")]
    told += [Verdict("Stalled", True, "OOMKilled", ""), Verdict("Monitored", True, "Monitored", "")]
    owner = owner.model_copy(
        update={"status": owner.status.model_copy(update={"conditions": with_times(told, (), 0, "then")})}
    )
    status = planning_status(owner, Observation(children=live), "now")
    found = {condition.type: condition for condition in status.conditions}
    assert (found["Ready"].status, found["Ready"].reason, found["Reconciling"].status) == ("False", "Planning", "True")
    assert (found["Available"].status, found["Monitored"].status, "Stalled" in found) == ("True", "True", False)
    assert found["Accepted"].observed_generation == 0  # of the spec before: the new one is not accepted yet
    assert status.observed_generation == owner.metadata.generation
