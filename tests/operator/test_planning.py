"""The plan in the cluster: what cannot fit is refused with the sum, and nothing waits for a hub that is away."""

from __future__ import annotations

import socket
from http.server import ThreadingHTTPServer
from typing import Any

import pytest

from quire_operator.kubeapi.resources import DEPLOYMENTS, EVENTS
from tests.operator.api_client import Namespace, eventually
from tests.operator.hub import asked, on_hub
from tests.operator.operator_process import OperatorProcess
from tests.operator.services import manifest

pytestmark = pytest.mark.control_plane


def accepted(namespace: Namespace, status: str) -> dict[str, Any]:
    def as_wanted() -> dict[str, Any] | None:
        condition = namespace.condition("llama", "Accepted")
        return condition if condition.get("status") == status else None

    return eventually(as_wanted)  # type: ignore[return-value]  # it returns only what is not None


def reasons(namespace: Namespace, kind: str = "Warning") -> list[str]:
    return [event["reason"] for event in namespace.api.list(EVENTS, namespace.name) if event["type"] == kind]


def test_a_model_that_fits_is_served_and_its_plan_reported(
    namespace: Namespace, operator: OperatorProcess, hub: ThreadingHTTPServer
) -> None:
    namespace.create(on_hub(hub))
    eventually(lambda: namespace.find(DEPLOYMENTS, "llama"))
    status = eventually(lambda: (s := namespace.status("llama")).get("plan") and s)
    handler: Any = hub.RequestHandlerClass
    assert status["plan"]["verdict"] == "Fits"
    assert status["plan"]["memoryBytes"] == 24 << 30
    assert status["plan"]["kvBytesPerToken"] == 2 * 2 * 2 * 16 * 2
    assert status["model"] == {
        "name": "llama",
        "source": "hf://org/small@main",
        "revision": handler.hub.commit("org/small"),
        "maxModelLen": 512,
        "parameters": 2 * 256 * 64 + 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 128 * 64 + 2 * 64) + 64,
    }


def test_a_model_that_does_not_fit_is_refused_with_the_sum_before_anything_starts(
    namespace: Namespace, operator: OperatorProcess, hub: ThreadingHTTPServer
) -> None:
    namespace.create(on_hub(hub, memory=1))
    condition = accepted(namespace, "False")
    assert condition["reason"] == "DoesNotFit"
    assert "one GPU (GPU) has 1.00 GiB x 0.9 = 0.90 GiB; weights 0.00 GiB + activations" in condition["message"]
    assert namespace.find(DEPLOYMENTS, "llama") is None
    assert namespace.status("llama")["plan"]["verdict"] == "DoesNotFit"
    assert namespace.condition("llama", "Stalled")["reason"] == "DoesNotFit"
    assert reasons(namespace) == ["DoesNotFit"]

    namespace.change("llama", {"resources": {"gpu": {"memoryGiB": 24}}})
    accepted(namespace, "True")
    eventually(lambda: namespace.find(DEPLOYMENTS, "llama"))


def test_weights_that_the_engine_cannot_read_are_refused_before_anything_starts_and_tried_where_wished(
    namespace: Namespace, operator: OperatorProcess, hub: ThreadingHTTPServer
) -> None:
    namespace.create(on_hub(hub, repository="org/quantized"))
    condition = accepted(namespace, "False")
    assert condition["reason"] == "UnsupportedModel"
    assert "quant_method 'modelopt' is not supported: there are awq" in condition["message"]
    assert namespace.find(DEPLOYMENTS, "llama") is None
    assert namespace.status("llama")["plan"]["verdict"] == "UnsupportedModel"
    assert reasons(namespace) == ["UnsupportedModel"]

    namespace.change("llama", {"plan": "warn"})
    accepted(namespace, "True")
    eventually(lambda: namespace.find(DEPLOYMENTS, "llama"))
    eventually(lambda: reasons(namespace).count("UnsupportedModel") == 2)


def test_an_edit_that_does_not_fit_leaves_what_runs(
    namespace: Namespace, operator: OperatorProcess, hub: ThreadingHTTPServer
) -> None:
    namespace.create(on_hub(hub))
    eventually(lambda: namespace.find(DEPLOYMENTS, "llama"))
    namespace.roll_out("llama")
    eventually(lambda: namespace.condition("llama", "Ready")["status"] == "True")
    before, served = namespace.get(DEPLOYMENTS, "llama")["metadata"]["resourceVersion"], namespace.status("llama")
    edit = {"resources": {"gpu": {"memoryGiB": 1}}, "service": {"port": 80}, "model": {"name": "large"}}
    namespace.change("llama", edit)
    assert accepted(namespace, "False")["reason"] == "DoesNotFit"
    assert namespace.condition("llama", "Available")["status"] == "True"
    assert namespace.get(DEPLOYMENTS, "llama")["metadata"]["resourceVersion"] == before
    status = namespace.status("llama")
    assert [status[key] for key in ("url", "model")] == [served[key] for key in ("url", "model")]


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        ({"resources": {"gpu": {"memoryGiB": 1}}}, "DoesNotFit"),
        ({"model": {"kvCacheDtype": "fp8"}}, "NotSupportedYet"),
        ({"parallelism": {"nodes": 2, "tensor": 2}}, "LeaderWorkerSetMissing"),
    ],
)
def test_a_service_is_suspended_after_an_edit_that_was_refused(
    namespace: Namespace, operator: OperatorProcess, hub: ThreadingHTTPServer, edit: dict[str, Any], reason: str
) -> None:
    namespace.create(on_hub(hub))
    eventually(lambda: namespace.find(DEPLOYMENTS, "llama"))
    namespace.change("llama", edit)
    assert accepted(namespace, "False")["reason"] == reason
    namespace.change("llama", {"suspend": True})
    eventually(lambda: namespace.find(DEPLOYMENTS, "llama") is None)
    eventually(lambda: namespace.condition("llama", "Ready").get("reason") == "Suspended")
    assert not namespace.condition("llama", "Stalled")
    assert "plan" not in namespace.status("llama")
    warnings = reasons(namespace)
    assert warnings.count(reason) == 1

    namespace.change("llama", {"suspend": False})
    assert accepted(namespace, "False")["reason"] == reason
    assert namespace.find(DEPLOYMENTS, "llama") is None


def test_a_warning_is_given_once_and_the_model_tried(
    namespace: Namespace, operator: OperatorProcess, hub: ThreadingHTTPServer
) -> None:
    namespace.create(on_hub(hub, memory=1, plan="warn"))
    eventually(lambda: namespace.find(DEPLOYMENTS, "llama"))
    eventually(lambda: "DoesNotFit" in reasons(namespace))
    namespace.roll_out("llama")
    eventually(lambda: namespace.condition("llama", "Ready")["status"] == "True")
    namespace.change("llama", {"replicas": 2})
    eventually(lambda: namespace.get(DEPLOYMENTS, "llama")["spec"]["replicas"] == 2)
    assert namespace.status("llama")["plan"]["verdict"] == "DoesNotFit"
    assert namespace.condition("llama", "Accepted")["status"] == "True"
    assert reasons(namespace).count("DoesNotFit") == 1


def test_pods_that_serve_are_scaled_whatever_the_plan_says_and_replaced_by_none_that_does_not_fit(
    namespace: Namespace, operator: OperatorProcess, hub: ThreadingHTTPServer
) -> None:
    namespace.create(on_hub(hub, memory=1, plan="warn", replicas=1))
    eventually(lambda: namespace.find(DEPLOYMENTS, "llama"))
    namespace.add_pod("llama", {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]})
    namespace.roll_out("llama")
    eventually(lambda: namespace.condition("llama", "Ready")["status"] == "True")
    namespace.change("llama", {"plan": "enforce", "replicas": 2})
    eventually(lambda: namespace.get(DEPLOYMENTS, "llama")["spec"]["replicas"] == 2)
    assert accepted(namespace, "True")["reason"] == "Valid"

    namespace.change("llama", {"replicas": 3, "engine": {"maxNumSeqs": 9}})
    assert accepted(namespace, "False")["reason"] == "DoesNotFit"
    assert namespace.get(DEPLOYMENTS, "llama")["spec"]["replicas"] == 2


def test_without_a_plan_no_hub_is_asked(
    namespace: Namespace, operator: OperatorProcess, hub: ThreadingHTTPServer
) -> None:
    before = asked(hub)
    namespace.create(on_hub(hub, memory=1, repository="org/other", plan="off"))
    eventually(lambda: namespace.find(DEPLOYMENTS, "llama"))
    accepted(namespace, "True")
    assert "plan" not in namespace.status("llama")
    assert asked(hub) == before


def test_a_hub_that_is_away_keeps_nothing_from_being_served(namespace: Namespace, operator: OperatorProcess) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    endpoint = {"name": "HF_ENDPOINT", "value": f"http://127.0.0.1:{port}"}
    spec = {"model": {"source": "hf://org/small"}, "engine": {"env": [endpoint]}}
    namespace.create(manifest(**spec, replicas=1))
    eventually(lambda: namespace.find(DEPLOYMENTS, "llama"))
    plan = eventually(lambda: namespace.status("llama").get("plan"))
    assert (plan["verdict"], plan["reason"]) == ("Skipped", "HubUnreachable")
    assert accepted(namespace, "True")["reason"] == "Valid"
    namespace.change("llama", {"replicas": 3})
    eventually(lambda: namespace.get(DEPLOYMENTS, "llama")["spec"]["replicas"] == 3)


def test_weights_in_the_image_are_not_planned_and_said_so(namespace: Namespace, operator: OperatorProcess) -> None:
    namespace.create(manifest())
    plan = eventually(lambda: namespace.status("llama").get("plan"))
    assert (plan["verdict"], plan["reason"]) == ("Skipped", "NotPlanned")
