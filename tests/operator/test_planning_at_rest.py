"""What planning costs at rest and over a restart, and what an operator may see of the nodes."""

from __future__ import annotations

import time
from http.server import ThreadingHTTPServer

import pytest

from quire_operator.kubeapi.resources import DEPLOYMENTS, SECRETS
from tests.operator.api_client import Namespace, eventually
from tests.operator.checkpoints import FACTS
from tests.operator.claims import jobs, make_claim, on_claim, say
from tests.operator.conftest import StartOperator
from tests.operator.hub import asked, on_hub

pytestmark = pytest.mark.control_plane

NODE = "/api/v1/nodes/l4-node"


def test_an_unknown_gpu_becomes_known_by_the_labels_of_its_node(
    namespace: Namespace, start_operator: StartOperator, hub: ThreadingHTTPServer
) -> None:
    labels = {"nvidia.com/gpu.memory": "23034", "nvidia.com/gpu.product": "NVIDIA-L4"}
    body = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "l4-node", "labels": labels}}
    namespace.api.apply(NODE, body)
    try:
        namespace.create(on_hub(hub, memory=None))
        first = start_operator(f"--namespace={namespace.name}", "--no-leader-election")
        assert eventually(lambda: namespace.status("llama").get("plan"))["reason"] == "UnknownGPU"

        first.stop()
        start_operator("--no-leader-election")
        plan = eventually(lambda: (p := namespace.status("llama")["plan"])["verdict"] == "Fits" and p)
        assert (plan["device"], plan["memoryBytes"]) == ("NVIDIA-L4", 23034 << 20)
    finally:
        namespace.api.request("DELETE", NODE)


def test_planned_services_at_rest_cost_no_calls_and_ask_no_hub(
    namespace: Namespace, start_operator: StartOperator, hub: ThreadingHTTPServer
) -> None:
    process = start_operator(f"--namespace={namespace.name}", "--no-leader-election")
    namespace.create(on_hub(hub))
    eventually(lambda: namespace.find(DEPLOYMENTS, "llama"))
    namespace.roll_out("llama")
    eventually(lambda: namespace.condition("llama", "Ready")["status"] == "True")
    process.wait_until_idle()
    before, reads = process.calls(), asked(hub)
    time.sleep(3)
    assert (process.calls(), asked(hub)) == (before, reads)


def test_a_restart_reads_the_model_again_and_changes_nothing(
    namespace: Namespace, start_operator: StartOperator, hub: ThreadingHTTPServer
) -> None:
    first = start_operator(f"--namespace={namespace.name}", "--no-leader-election")
    namespace.create(on_hub(hub))
    eventually(lambda: namespace.status("llama").get("plan"))
    first.wait_until_idle()
    first.stop()
    before = namespace.status("llama")
    reads = asked(hub)
    second = start_operator(f"--namespace={namespace.name}", "--no-leader-election")
    eventually(lambda: asked(hub) > reads)
    second.wait_until_idle()
    assert namespace.status("llama") == before


def test_a_gated_model_is_planned_only_where_the_operator_may_read_tokens(
    namespace: Namespace, start_operator: StartOperator, gated_hub: ThreadingHTTPServer
) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hf", "namespace": namespace.name}}
    namespace.api.create(SECRETS, {**secret, "stringData": {"token": "the-token"}})
    body = on_hub(gated_hub)
    body["spec"]["model"]["tokenSecretRef"] = {"name": "hf", "key": "token"}
    first = start_operator(f"--namespace={namespace.name}", "--no-leader-election")
    namespace.create(body)
    plan = eventually(lambda: namespace.status("llama").get("plan"))
    assert plan["reason"] == "ModelGated"
    assert "the operator reads Secrets only with --plan-reads-tokens" in plan["message"]
    assert first.metric("quire_operator_api_calls_total", resource="secrets") == 0
    first.stop()

    second = start_operator(
        f"--namespace={namespace.name}", "--no-leader-election", "--plan-reads-tokens", user="admin"
    )
    eventually(lambda: namespace.status("llama")["plan"]["verdict"] == "Fits")
    assert "the-token" not in second.log.read_text()


def test_without_leave_no_hub_is_asked_that_a_service_names_and_it_is_served(
    namespace: Namespace, start_operator: StartOperator, hub: ThreadingHTTPServer
) -> None:
    before = asked(hub)
    start_operator(f"--namespace={namespace.name}", "--no-leader-election", "--no-plan-reads-any-hub")
    namespace.create(on_hub(hub))
    eventually(lambda: namespace.find(DEPLOYMENTS, "llama"))
    assert eventually(lambda: namespace.status("llama").get("plan"))["reason"] == "ForeignHub"
    assert asked(hub) == before


def test_a_restart_keeps_the_plan_of_a_model_on_a_claim_and_reads_nothing(
    namespace: Namespace, start_operator: StartOperator
) -> None:
    first = start_operator(f"--namespace={namespace.name}", "--no-leader-election")
    make_claim(namespace)
    namespace.create(on_claim())
    say(namespace, FACTS)
    before = eventually(lambda: namespace.status("llama").get("plan"))
    first.stop()
    second = start_operator(f"--namespace={namespace.name}", "--no-leader-election")
    second.wait_until_idle()
    assert jobs(namespace) == []
    assert namespace.status("llama")["plan"] == before
