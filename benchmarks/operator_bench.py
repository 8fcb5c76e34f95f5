"""A control plane of its own with the operator beside it, as the tests start them, for measuring."""

from __future__ import annotations

import concurrent.futures
import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from e2e.cluster.control_plane import ControlPlane, start_control_plane
from e2e.cluster.kubeconfig import User
from quire_operator.kubeapi.resources import DEPLOYMENTS, LLMSERVICES
from tests.operator.conftest import OPERATOR_USER, prepare
from tests.operator.operator_process import OperatorProcess
from tests.operator.services import manifest

NAMESPACE = "bench"


class Bench:
    """One control plane, the namespace `bench`, and operators that run with exactly the rights that are shipped."""

    def __init__(self, plane: ControlPlane, directory: Path) -> None:
        self.plane, self.api = plane, prepare(plane)
        self._directory = directory
        self._operators: list[OperatorProcess] = []
        self.api.make_namespace(NAMESPACE)

    def create(self, names: list[str], **spec: Any) -> None:
        """Create LLMServices, eight at a time."""

        def one(name: str) -> None:
            self.api.create(LLMSERVICES, manifest(name, NAMESPACE, **{"replicas": 1, **spec}))

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(one, names))

    def start_operator(self, *flags: str, kubeconfig: Path | None = None) -> OperatorProcess:
        """Start an operator; it ends with the bench."""
        log = self._directory / f"operator-{len(self._operators)}.log"
        operator = OperatorProcess(kubeconfig or self.plane.kubeconfig_of(OPERATOR_USER), log, *flags)
        self._operators.append(operator)
        return operator

    def watch_deployment(
        self, name: str, version: str, is_wanted: Callable[[list[str]], bool], shown: threading.Event
    ) -> None:
        """Set `shown` once the watched Deployment's arguments are what is wanted."""
        path = f"{DEPLOYMENTS.path(NAMESPACE)}?watch=true&fieldSelector=metadata.name={name}&resourceVersion={version}"
        for event in self.api.watch(path):
            if is_wanted(event["object"]["spec"]["template"]["spec"]["containers"][0]["args"]):
                shown.set()
                return

    def served(self) -> int:
        """LLMServices that have a Deployment and a status."""
        deployments = {item["metadata"]["name"] for item in self.api.list(DEPLOYMENTS, NAMESPACE)}
        services = self.api.list(LLMSERVICES, NAMESPACE)
        return sum(item["metadata"]["name"] in deployments and bool(item.get("status")) for item in services)

    def close(self) -> None:
        """End the operators."""
        for operator in self._operators:
            operator.end()


@contextlib.contextmanager
def bench() -> Iterator[Bench]:
    """Use as a context manager; everything is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="quire-bench-") as folder:
        directory = Path(folder)
        plane = start_control_plane(directory / "plane", users=[User(OPERATOR_USER, ())])
        running: Bench | None = None
        try:
            running = Bench(plane, directory)
            yield running
        finally:
            if running is not None:
                running.close()
            plane.stop()


def calls(operator: OperatorProcess) -> dict[str, float]:
    """Calls to the API so far, by `VERB RESOURCE`."""
    found: dict[str, float] = {}
    for labels, value in operator.samples("quire_operator_api_calls_total"):
        key = f"{labels['verb']} {labels['resource']}"
        found[key] = found.get(key, 0) + value
    return found


def wait_for(what: str, reached: Callable[[], bool], seconds: float) -> float:
    """Seconds until `reached()` is true, looked at four times a second. Raises TimeoutError."""
    begun = time.monotonic()
    while not reached():
        if time.monotonic() - begun > seconds:
            raise TimeoutError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.25)
    return time.monotonic() - begun
