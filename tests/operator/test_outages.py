"""Many services, two operators, and an API server that comes and goes."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from e2e.cluster.control_plane import ControlPlane
from quire_operator.kubeapi.resources import CHILDREN, DEPLOYMENTS, LEASES, LLMSERVICES
from tests.operator.api_client import ApiClient, Namespace, eventually
from tests.operator.objects import versions
from tests.operator.operator_process import OperatorProcess
from tests.operator.services import manifest

pytestmark = pytest.mark.control_plane

Start = Callable[..., OperatorProcess]


_PATIENT = "--lease-seconds=15"
"""For a test that keeps the machine so busy that a renewal may be late."""


def start(start_operator: Start, namespace: Namespace, *flags: str) -> OperatorProcess:
    """An operator for one namespace alone, with its own Lease there."""
    own = (f"--namespace={namespace.name}", f"--lease-namespace={namespace.name}", "--lease-seconds=6")
    return start_operator(*own, *flags, user="admin")


def engine_arguments(namespace: Namespace, name: str) -> list[str]:
    return list(namespace.get(DEPLOYMENTS, name)["spec"]["template"]["spec"]["containers"][0]["args"])


def writes(api: ApiClient) -> dict[tuple[str, str], float]:
    """Requests that change something, by verb and resource, as the API server itself counts them."""
    counted = {}
    for family in text_string_to_metric_families(api.text("/metrics")):
        if family.name == "apiserver_request":
            for sample in family.samples:
                verb, resource = sample.labels.get("verb", ""), sample.labels.get("resource", "")
                if verb in ("POST", "PUT", "PATCH", "APPLY", "DELETE") and resource != "leases":
                    key = (verb, resource)
                    counted[key] = counted.get(key, 0) + sample.value
    return counted


def test_two_hundred_services_are_served_and_then_nothing_is_written(
    namespace: Namespace, start_operator: Start
) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: namespace.create(manifest(f"llm-{n}", replicas=1)), range(200)))
    operator = start(start_operator, namespace, _PATIENT)
    eventually(lambda: len(namespace.api.list(DEPLOYMENTS, namespace.name)) == 200, 240)
    operator.wait_until_idle(240)
    assert all(item.get("status", {}).get("conditions") for item in namespace.api.list(LLMSERVICES, namespace.name))
    before, seen = writes(namespace.api), versions(namespace.api, namespace.name)
    calls = operator.calls()
    assert len(seen) == 200 * 6
    time.sleep(5)
    assert writes(namespace.api) == before
    assert versions(namespace.api, namespace.name) == seen
    assert operator.calls() == calls

    assert operator.stop() == 0
    restarted = start(start_operator, namespace, _PATIENT)
    restarted.wait_until_leading()
    restarted.wait_until_idle(240)
    assert writes(namespace.api) == before
    assert versions(namespace.api, namespace.name) == seen


def test_a_change_is_never_lost_however_soon_it_follows(namespace: Namespace, start_operator: Start) -> None:
    start(start_operator, namespace).wait_until_leading()
    for n in range(15):
        namespace.create(manifest(f"llm-{n}"))
        time.sleep(n * 0.01)
        namespace.change(f"llm-{n}", {"engine": {"maxNumSeqs": 9}})
    for n in range(15):
        eventually(lambda n=n: "--max-num-seqs=9" in engine_arguments(namespace, f"llm-{n}"))
        eventually(lambda n=n: namespace.status(f"llm-{n}")["observedGeneration"] == 2)


def test_the_operator_goes_on_when_the_api_server_comes_back(
    namespace: Namespace, start_operator: Start, control_plane: ControlPlane
) -> None:
    operator = start(start_operator, namespace, "--no-leader-election")
    for name in ("kept", "changed", "deleted"):
        namespace.create(manifest(name))
        eventually(lambda name=name: namespace.condition(name, "Ready"))
    operator.wait_until_idle()
    uid = namespace.get(DEPLOYMENTS, "kept")["metadata"]["uid"]

    control_plane.restart_apiserver()
    # before any watch is back: these events are told to nobody
    namespace.api.delete(LLMSERVICES, namespace.name, "deleted")
    namespace.change("changed", {"engine": {"maxNumSeqs": 9}})
    namespace.create(manifest("new"))

    eventually(lambda: namespace.find(DEPLOYMENTS, "new"), 60)
    eventually(lambda: "--max-num-seqs=9" in engine_arguments(namespace, "changed"), 60)
    for resource in CHILDREN:  # as the garbage collector would
        for item in namespace.api.list(resource, namespace.name):
            if item["metadata"]["labels"].get("serving.quire.dev/llmservice") == "deleted":
                namespace.api.delete(resource, namespace.name, item["metadata"]["name"])
    operator.wait_until_idle()
    assert namespace.find(DEPLOYMENTS, "deleted") is None
    assert namespace.get(DEPLOYMENTS, "kept")["metadata"]["uid"] == uid
    assert operator.process.poll() is None


def test_what_happened_while_no_operator_ran_is_caught_up_with(namespace: Namespace, start_operator: Start) -> None:
    operator = start(start_operator, namespace)
    for name in ("kept", "deleted"):
        namespace.create(manifest(name))
        eventually(lambda name=name: namespace.condition(name, "Ready"))
    operator.kill()
    namespace.api.delete(LLMSERVICES, namespace.name, "deleted")
    namespace.api.delete(DEPLOYMENTS, namespace.name, "deleted")
    namespace.api.delete(DEPLOYMENTS, namespace.name, "kept")
    namespace.create(manifest("new"))
    start(start_operator, namespace).wait_until_leading()
    eventually(lambda: namespace.find(DEPLOYMENTS, "new"))
    eventually(lambda: namespace.find(DEPLOYMENTS, "kept"))
    assert namespace.find(DEPLOYMENTS, "deleted") is None


def test_a_second_operator_takes_over_when_the_leader_is_killed(namespace: Namespace, start_operator: Start) -> None:
    leader = start(start_operator, namespace)
    leader.wait_until_leading()
    standby = start(start_operator, namespace)
    eventually(lambda: standby.says("waiting for the lease"))
    namespace.create(manifest("one"))
    eventually(lambda: namespace.condition("one", "Ready"))
    assert not standby.says("applied")

    leader.kill()
    namespace.create(manifest("two"))
    eventually(lambda: namespace.condition("two", "Ready"))
    assert standby.says("leading as")
    assert standby.metric("quire_operator_leading") == 1
    lease = namespace.get(LEASES, "quire-operator")
    assert lease["spec"]["leaseTransitions"] == 1


@pytest.mark.parametrize("after", [0.0, 0.02, 0.05, 0.1, 0.5])  # seconds: kopf begins within some 50 ms, then it runs
def test_a_leader_that_is_stopped_hands_over_at_once(namespace: Namespace, start_operator: Start, after: float) -> None:
    leader = start(start_operator, namespace)
    leader.wait_until_leading()
    time.sleep(after)
    assert leader.stop() == 0
    assert namespace.get(LEASES, "quire-operator")["spec"]["holderIdentity"] == ""


def test_a_leader_whose_lease_is_taken_ends_without_another_write(namespace: Namespace, start_operator: Start) -> None:
    leader = start(start_operator, namespace)
    leader.wait_until_leading()
    namespace.api.patch(LEASES, namespace.name, "quire-operator", {"spec": {"holderIdentity": "usurper"}})
    assert leader.process.wait(timeout=20) != 0
    assert namespace.get(LEASES, "quire-operator")["spec"]["holderIdentity"] == "usurper"


def test_an_operator_of_one_namespace_leaves_the_others_alone(
    namespace: Namespace, start_operator: Start, api: ApiClient
) -> None:
    api.make_namespace(f"{namespace.name}-other")
    other = Namespace(api, f"{namespace.name}-other")
    other.create(manifest("theirs"))
    operator = start(start_operator, namespace)
    namespace.create(manifest("ours"))
    eventually(lambda: namespace.condition("ours", "Ready"))
    operator.wait_until_idle()
    assert other.status("theirs") == {}
    assert other.find(DEPLOYMENTS, "theirs") is None


def test_it_reports_itself_healthy_while_it_works(namespace: Namespace, start_operator: Start) -> None:
    operator = start(start_operator, namespace)
    operator.wait_until_leading()
    namespace.create(manifest("one"))
    eventually(lambda: namespace.condition("one", "Ready"))
    assert httpx.get(f"{operator.url}/healthz").status_code == 200
    assert operator.metric("quire_operator_reconcile_seconds_count", result="changed") >= 1
    assert operator.metric("quire_operator_llmservices", ready="False", reason="Starting") == 1
