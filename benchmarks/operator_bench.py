"""A control plane of its own with the operator beside it, as the tests start them, for measuring."""

from __future__ import annotations

import concurrent.futures
import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from e2e.cluster.control_plane import ControlPlane, start_control_plane
from e2e.cluster.kubeconfig import User
from quire_operator.kubeapi.resources import DEPLOYMENTS, LEASES, LLMSERVICES
from tests.operator.api_client import ApiClient
from tests.operator.conftest import OPERATOR_USER, prepare
from tests.operator.operator_process import OperatorProcess
from tests.operator.services import manifest

NAMESPACE = "bench"
_SETTLE_SECONDS = 300.0


class Bench:
    """One control plane, the namespace `bench`, and operators that run with exactly the rights that are shipped."""

    def __init__(self, plane: ControlPlane, directory: Path) -> None:
        self.plane, self.api = plane, prepare(plane)
        self.directory = directory
        self.operator_user = plane.users[OPERATOR_USER]
        self._operators: list[OperatorProcess] = []
        self.api.make_namespace(NAMESPACE)

    def create(self, names: list[str], **spec: Any) -> None:
        """Create LLMServices, eight at a time."""

        def one(name: str) -> None:
            self.api.create(LLMSERVICES, manifest(name, NAMESPACE, **{"replicas": 1, **spec}))

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(one, names))

    def start_operator(
        self, *flags: str, kubeconfig: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> OperatorProcess:
        """Start an operator; it ends with the bench."""
        log = self.directory / f"operator-{len(self._operators)}.log"
        path = kubeconfig or self.plane.kubeconfig_of(OPERATOR_USER)
        operator = OperatorProcess(path, log, *flags, environment=environment)
        self._operators.append(operator)
        return operator

    def served(self) -> int:
        """LLMServices that have a Deployment and a status."""
        deployments = {item["metadata"]["name"] for item in self.api.list(DEPLOYMENTS, NAMESPACE)}
        services = self.api.list(LLMSERVICES, NAMESPACE)
        return sum(item["metadata"]["name"] in deployments and bool(item.get("status")) for item in services)

    def observed(self, names: list[str], argument: str) -> bool:
        """Whether the Deployments of these services have the argument, and their statuses are of their last specs."""
        deployments = {item["metadata"]["name"]: item["spec"] for item in self.api.list(DEPLOYMENTS, NAMESPACE)}
        containers = (deployments[name]["template"]["spec"]["containers"][0] for name in names)
        services = (item for item in self.api.list(LLMSERVICES, NAMESPACE) if item["metadata"]["name"] in names)
        return all(argument in container["args"] for container in containers) and all(
            item["status"].get("observedGeneration") == item["metadata"]["generation"] for item in services
        )

    def close(self) -> None:
        """End the operators."""
        for operator in self._operators:
            operator.end()


@contextlib.contextmanager
def bench(*, audited: bool = False) -> Iterator[Bench]:
    """Use as a context manager; everything is gone afterwards. Where it is `audited`, what operators ask is logged."""
    with tempfile.TemporaryDirectory(prefix="quire-bench-") as folder:
        directory = Path(folder)
        plane = start_control_plane(
            directory / "plane", users=[User(OPERATOR_USER, ())], audited=[OPERATOR_USER] if audited else ()
        )
        running: Bench | None = None
        try:
            running = Bench(plane, directory)
            yield running
        finally:
            if running is not None:
                running.close()
            plane.stop()


def until_shown(api: ApiClient, name: str, argument: str, change: Callable[[], object], limit: float) -> float:
    """Seconds from `change()` until a watch of the Deployment shows the argument. Raises TimeoutError after `limit`."""
    shown, given_up = threading.Event(), threading.Event()

    def shows(deployment: dict[str, Any]) -> bool:
        return argument in deployment["spec"]["template"]["spec"]["containers"][0].get("args", [])

    def watch() -> None:
        while not given_up.is_set():  # a watch that lasts, or an API server that is new, says that its version is gone
            deployment = api.get(DEPLOYMENTS, NAMESPACE, name)
            version = deployment["metadata"]["resourceVersion"]
            path = f"{DEPLOYMENTS.path(NAMESPACE)}?watch=true&fieldSelector=metadata.name={name}"
            events = api.watch(f"{path}&resourceVersion={version}")
            if shows(deployment) or any(e["type"] == "MODIFIED" and shows(e["object"]) for e in events):
                shown.set()
                return

    threading.Thread(target=watch, daemon=True).start()
    begun = time.monotonic()
    change()
    if not shown.wait(limit):
        given_up.set()
        raise TimeoutError(f"Deployment {name} was not changed within {limit:.0f} s")
    return time.monotonic() - begun


def settle(running: Bench, operator: OperatorProcess, names: list[str]) -> None:
    """Wait until the operator leads, and has done what there is to do."""
    operator.wait_until_leading()
    wait_for("all are served", lambda: running.served() >= len(names), _SETTLE_SECONDS)
    operator.wait_until_idle(_SETTLE_SECONDS)


def writes(operator: OperatorProcess) -> int:
    """Writes that the API server took so far, those of the Lease not among them."""
    found = operator.samples("quire_operator_api_calls_total")
    return round(
        sum(
            value
            for labels, value in found
            if labels["verb"] in ("apply", "create", "update", "delete")
            and labels["resource"] != LEASES.plural
            and labels["code"].startswith("2")
        )
    )


def wait_for(what: str, reached: Callable[[], bool], seconds: float) -> float:
    """Seconds until `reached()` is true, looked at four times a second. Raises TimeoutError."""
    begun = time.monotonic()
    while not reached():
        if time.monotonic() - begun > seconds:
            raise TimeoutError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.25)
    return time.monotonic() - begun
