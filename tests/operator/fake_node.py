"""A node without a kubelet: pods that the scheduler puts on it do what the test says they do."""

from __future__ import annotations

import contextlib
import datetime
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx

from quire_operator.kubeapi.resources import PODS
from tests.operator.api_client import ApiClient, Object

GPU = "example.com/gpu"

_NODES = "/api/v1/nodes"
_SECONDS = 0.3


def serving(pod: Object) -> Object:
    """The status of a pod whose engine answers."""
    return _status(pod, True, {"state": {"running": {}}})


def starting(pod: Object) -> Object:
    """The status of a pod whose engine loads the model."""
    return _status(pod, False, {"state": {"running": {}}})


def crashing(pod: Object, message: str = "ModelNotFound: there is no /models/none") -> Object:
    """The status of a pod whose engine has failed four times."""
    last = {"exitCode": 1, "reason": "Error", "message": message}
    waiting = {"reason": "CrashLoopBackOff", "message": "back-off 40s restarting failed container"}
    container = {"restartCount": 4, "state": {"waiting": waiting}, "lastState": {"terminated": last}}
    return _status(pod, False, container)


def unpullable(pod: Object) -> Object:
    """The status of a pod whose image is not there."""
    message = "Back-off pulling image: ErrImagePull: rpc error: code = NotFound"
    return _status(pod, False, {"state": {"waiting": {"reason": "ImagePullBackOff", "message": message}}})


def _status(pod: Object, ready: bool, container: Object) -> Object:
    name, image = pod["spec"]["containers"][0]["name"], pod["spec"]["containers"][0]["image"]
    told = {"name": name, "image": image, "imageID": "", "ready": ready, "restartCount": 0, **container}
    conditions = [{"type": kind, "status": str(ready)} for kind in ("Ready", "ContainersReady")]
    conditions += [{"type": kind, "status": "True"} for kind in ("PodScheduled", "Initialized")]
    return {"phase": "Running", "conditions": conditions, "containerStatuses": [told]}


@contextlib.contextmanager
def fake_node(
    api: ApiClient, name: str, does: Callable[[Object], Object] = serving, *, gpus: int = 0
) -> Iterator[None]:
    """A ready node with `gpus` of the resource GPU. `does` gives the status of each of its pods."""
    sizes = {"cpu": "64", "memory": "256Gi", "pods": "100", GPU: str(gpus)}
    api.request("POST", _NODES, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    _beat(api, name, sizes)
    # the node came without a status, which the API server took for a node that is not ready
    api.request("PATCH", f"{_NODES}/{name}", {"spec": {"taints": []}}, "application/merge-patch+json")
    stop = threading.Event()
    thread = threading.Thread(target=_run, args=(api, name, does, sizes, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)
        api.request("DELETE", f"{_NODES}/{name}")


def _run(api: ApiClient, name: str, does: Callable[[Object], Object], sizes: Object, stop: threading.Event) -> None:
    turns, told = 0, dict[str, Object]()
    while not stop.wait(_SECONDS):
        turns += 1
        with contextlib.suppress(httpx.HTTPError):  # a pod that has changed meanwhile is looked at again
            if turns % 10 == 0:
                _beat(api, name, sizes)
            for pod in api.list(PODS):
                if pod["spec"].get("nodeName") == name:
                    _act(api, pod, does(pod), told)


def _beat(api: ApiClient, name: str, sizes: Object) -> None:
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    ready: dict[str, Any] = {"type": "Ready", "status": "True", "lastHeartbeatTime": now}
    status = {"status": {"capacity": sizes, "allocatable": sizes, "conditions": [ready]}}
    api.request("PATCH", f"{_NODES}/{name}/status", status, "application/merge-patch+json")


def _act(api: ApiClient, pod: Object, status: Object, told: dict[str, Object]) -> None:
    namespace, name, uid = (pod["metadata"][key] for key in ("namespace", "name", "uid"))
    if pod["metadata"].get("deletionTimestamp"):
        at_once = {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0}
        api.request("DELETE", PODS.path(namespace, name), at_once)
    elif told.get(uid) != status:
        api.set_status(PODS, namespace, name, status)
        told[uid] = status
