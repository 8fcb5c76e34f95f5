"""A small synchronous client of the API server, for what a test does as a user, a kubelet or a controller."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import yaml

from quire_operator.kubeapi.resources import DEPLOYMENTS, LLMSERVICES, PODS, Resource

Object = dict[str, Any]
T = TypeVar("T")


class ApiClient:
    """Raises httpx.HTTPStatusError, whose response holds the API server's words."""

    def __init__(self, server: str, authority: Path, token: str) -> None:
        context = ssl.create_default_context(cafile=str(authority))
        headers = {"Authorization": f"Bearer {token}"}
        self._http = httpx.Client(base_url=server, verify=context, headers=headers, timeout=30)

    def request(self, method: str, path: str, body: Any = None, content: str = "application/json") -> Object:
        response = self._http.request(
            method,
            path,
            content=yaml.safe_dump(body) if "yaml" in content else None,
            json=body if body is not None and "yaml" not in content else None,
            headers={"Content-Type": content},
        )
        try:
            response.raise_for_status()
        except httpx.HTTPStatusError as error:
            error.add_note(response.text)
            raise
        result: Object = response.json()
        return result

    def watch(self, path: str) -> Iterator[Object]:
        """The events of a watch, until the server ends it."""
        with self._http.stream("GET", path, timeout=httpx.Timeout(30, read=600)) as response:
            for line in response.iter_lines():
                yield json.loads(line)

    def text(self, path: str) -> str:
        return self._http.get(path).raise_for_status().text

    def get(self, resource: Resource, namespace: str, name: str) -> Object:
        return self.request("GET", resource.path(namespace, name))

    def find(self, resource: Resource, namespace: str, name: str) -> Object | None:
        try:
            return self.get(resource, namespace, name)
        except httpx.HTTPStatusError as error:
            if error.response.status_code == 404:
                return None
            raise

    def list(self, resource: Resource, namespace: str | None = None) -> list[Object]:
        items: list[Object] = self.request("GET", resource.path(namespace))["items"]
        return items

    def create(self, resource: Resource, body: Object) -> Object:
        return self.request("POST", resource.path(body["metadata"]["namespace"]), body)

    def patch(self, resource: Resource, namespace: str, name: str, patch: Object) -> Object:
        path = resource.path(namespace, name)
        return self.request("PATCH", path, patch, "application/merge-patch+json")

    def set_status(self, resource: Resource, namespace: str, name: str, status: Object) -> Object:
        path = resource.path(namespace, name, "status")
        return self.request("PATCH", path, {"status": status}, "application/merge-patch+json")

    def delete(self, resource: Resource, namespace: str, name: str) -> None:
        self.request("DELETE", resource.path(namespace, name))

    def make_namespace(self, name: str) -> None:
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        self.apply(f"/api/v1/namespaces/{name}", body)

    def apply(self, path: str, body: Object) -> Object:
        return self.request("PATCH", f"{path}?fieldManager=tests&force=true", body, "application/apply-patch+yaml")


class Namespace:
    """One test's own namespace, with shorthands for LLMServices and the parts of controllers that do not run here."""

    def __init__(self, api: ApiClient, name: str) -> None:
        self.api, self.name = api, name

    def create(self, body: Object) -> Object:
        return self.api.create(LLMSERVICES, {**body, "metadata": {**body["metadata"], "namespace": self.name}})

    def change(self, name: str, spec: Object) -> Object:
        return self.api.patch(LLMSERVICES, self.name, name, {"spec": spec})

    def status(self, name: str) -> Object:
        return self.api.get(LLMSERVICES, self.name, name).get("status") or {}

    def condition(self, name: str, kind: str) -> Object:
        """The condition, or an empty dict while it is absent."""
        conditions = self.status(name).get("conditions") or []
        return next((condition for condition in conditions if condition["type"] == kind), {})

    def message(self, name: str, reason: str, seconds: float = 30) -> str:
        """Message of the Ready condition once it has this reason."""

        def message() -> str:
            condition = self.condition(name, "Ready")
            assert condition.get("reason") == reason, condition
            return str(condition["message"])

        return eventually(message, seconds)

    def find(self, resource: Resource, name: str) -> Object | None:
        return self.api.find(resource, self.name, name)

    def get(self, resource: Resource, name: str) -> Object:
        return self.api.get(resource, self.name, name)

    def roll_out(self, name: str, *, ready: int | None = None) -> None:
        """What the Deployment's controller and the kubelets would report; all replicas serve unless `ready` says so."""
        deployment = self.get(DEPLOYMENTS, name)
        count = deployment["spec"]["replicas"]
        serving = count if ready is None else ready
        status = {
            "observedGeneration": deployment["metadata"]["generation"],
            "replicas": count,
            "updatedReplicas": count,
            "readyReplicas": serving,
            "availableReplicas": serving,
        }
        self.api.set_status(DEPLOYMENTS, self.name, name, status)

    def add_pod(self, service: str, status: Object, suffix: str = "a") -> Object:
        """A pod as the Deployment's controller would make it, with a status as its node would write it."""
        template = self.get(DEPLOYMENTS, service)["spec"]["template"]
        resources = template["spec"]["containers"][0]["resources"]
        engine = {"name": "engine", "image": "quire/engine:test", "resources": resources}
        spec = {**template["spec"], "containers": [engine], "volumes": []}
        del spec["serviceAccountName"]
        metadata = {**template["metadata"], "name": f"{service}-{suffix}", "namespace": self.name}
        self.api.create(PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
        return self.api.set_status(PODS, self.name, metadata["name"], status)


def eventually(check: Callable[[], T], seconds: float = 30) -> T:
    """Call `check` until it neither fails nor returns something false, and return what it returned."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            result = check()
            if result:
                return result
            problem: Exception = AssertionError(f"still {result!r}")
        except (AssertionError, httpx.HTTPError, KeyError) as error:
            problem = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {problem}") from problem
        time.sleep(0.1)
