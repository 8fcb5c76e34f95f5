"""A branch that moves on the hub, while what it was is served."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from e2e.hub_server import make_server
from quire_operator.kubeapi.resources import DEPLOYMENTS
from tests.operator.api_client import Namespace, eventually
from tests.operator.checkpoints import SMALL, write_checkpoint
from tests.operator.claims import make_claim
from tests.operator.conftest import StartOperator
from tests.operator.hub import on_hub
from tests.operator.prefetch_job import CLAIM, cached, complete, job_for, template

pytestmark = pytest.mark.control_plane


@pytest.fixture
def namespace(namespace: Namespace) -> Namespace:
    """A namespace with the claim `models`."""
    make_claim(namespace)
    return namespace


def test_a_branch_that_moved_is_followed_while_the_old_commit_serves(
    namespace: Namespace, start_operator: StartOperator, tmp_path: Path
) -> None:
    server = make_server({"org/small": write_checkpoint(tmp_path / "old", SMALL)}, host="127.0.0.1")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    handler: Any = server.RequestHandlerClass
    hub = handler.hub
    try:
        first = start_operator()
        namespace.create(on_hub(server, **CLAIM))
        old = hub.commit("org/small")
        complete(namespace, job_for(namespace, old), old)
        eventually(lambda: template(namespace))
        namespace.roll_out("llama")
        eventually(lambda: namespace.condition("llama", "Ready")["status"] == "True")
        before = namespace.get(DEPLOYMENTS, "llama")["metadata"]["resourceVersion"]
        first.stop()

        hub.move("org/small", write_checkpoint(tmp_path / "new", SMALL, files=2))
        new = hub.commit("org/small")
        start_operator()
        job = job_for(namespace, new)
        cached(namespace, "llama", "Downloading")
        assert namespace.condition("llama", "Ready")["status"] == "True"
        assert namespace.get(DEPLOYMENTS, "llama")["metadata"]["resourceVersion"] == before
        assert namespace.status("llama")["cache"]["commit"] == old
        complete(namespace, job, new)
        eventually(lambda: f"--revision={new}" in template(namespace)["spec"]["containers"][0]["args"])
    finally:
        server.shutdown()
        server.server_close()
