"""No word of a Secret gets into anything that the operator writes: log, children, status, Events, metrics."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from e2e.hub_server import make_server
from quire_operator.kubeapi.resources import DEPLOYMENTS, EVENTS, LLMSERVICES, SECRETS
from tests.operator.api_client import ApiClient, Namespace, eventually
from tests.operator.checkpoints import SMALL, write_checkpoint
from tests.operator.conftest import StartOperator
from tests.operator.hub import on_hub

pytestmark = pytest.mark.control_plane

TOKEN = "hf_PlantedTokenThatNobodyMayRepeat"
WRONG = "hf_PlantedTokenThatTheHubRefuses"
KEY = "sk-PlantedKeyThatNobodyMayRepeat"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[ThreadingHTTPServer]:
    """A hub that wants the planted token."""
    server = make_server({"org/small": write_checkpoint(tmp_path / "model", SMALL)}, host="127.0.0.1", token=TOKEN)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def everything(api: ApiClient, namespace: str) -> dict[str, list[dict[str, Any]]]:
    """The objects of every kind that the API server lists in the namespace, managed fields included."""
    groups = api.request("GET", "/apis")["groups"]
    roots = ["/api/v1", *(f"/apis/{group['preferredVersion']['groupVersion']}" for group in groups)]
    found = {}
    for root in roots:
        for resource in api.request("GET", root)["resources"]:
            if resource["namespaced"] and "list" in resource["verbs"]:
                path = f"{root}/namespaces/{namespace}/{resource['name']}"
                found[resource["name"]] = api.request("GET", path)["items"]
    return found


def plant(namespace: Namespace, name: str, value: str) -> dict[str, str]:
    """Make a Secret. Returns the reference to its one key."""
    metadata = {"name": name, "namespace": namespace.name}
    namespace.api.create(
        SECRETS, {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": {"k": value}}
    )
    return {"name": name, "key": "k"}


def gated(hub: ThreadingHTTPServer, name: str, token: dict[str, str], **spec: Any) -> dict[str, Any]:
    body: dict[str, Any] = on_hub(hub, **spec)
    body["metadata"]["name"] = name
    body["spec"]["model"]["tokenSecretRef"] = token
    return body


def test_no_token_or_key_is_repeated_anywhere(
    namespace: Namespace, start_operator: StartOperator, hub: ThreadingHTTPServer
) -> None:
    good, bad, key = (plant(namespace, name, value) for name, value in (("good", TOKEN), ("bad", WRONG), ("key", KEY)))
    flags = (f"--namespace={namespace.name}", f"--lease-namespace={namespace.name}")
    operator = start_operator(*flags, "--plan-reads-tokens", "--log-level=debug", user="admin")
    namespace.create(gated(hub, "fits", good, replicas=1, security={"apiKeySecretRef": key}))
    namespace.create(gated(hub, "tight", good, memory=1))
    namespace.create(gated(hub, "denied", bad))
    namespace.create(gated(hub, "absent", {"name": "nowhere", "key": "k"}))

    def verdict(name: str, expected: str) -> bool:
        plan = namespace.status(name)["plan"]
        assert plan.get("reason", plan["verdict"]) == expected, plan
        return True

    # what the hub gave away only for the token, and what it refused: the tokens were read, and sent
    for name, expected in (("fits", "Fits"), ("tight", "DoesNotFit"), ("denied", "ModelGated")):
        eventually(lambda name=name, expected=expected: verdict(name, expected))
    eventually(lambda: namespace.find(DEPLOYMENTS, "absent"))
    container = namespace.get(DEPLOYMENTS, "fits")["spec"]["template"]["spec"]["containers"][0]
    references = [variable["valueFrom"] for variable in container["env"] if "valueFrom" in variable]
    assert {"secretKeyRef": key} in references
    assert {"secretKeyRef": good} in references
    namespace.api.delete(LLMSERVICES, namespace.name, "tight")
    metrics = httpx.get(f"{operator.url}/metrics").text
    assert operator.stop() == 0

    objects = everything(namespace.api, namespace.name)
    assert len(objects.pop("secrets")) == 3
    assert len(objects["llmservices"]) == 3
    assert namespace.api.list(EVENTS, namespace.name)
    written = {"log": operator.log.read_text(), "metrics": metrics, "objects": json.dumps(objects)}
    assert "applied Deployment fits" in written["log"]
    for secret in (TOKEN, WRONG, KEY):
        for form in (secret, base64.b64encode(secret.encode()).decode()):
            assert [where for where, text in written.items() if form in text] == []
