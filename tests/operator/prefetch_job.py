"""The parts of a Job's controller and of a kubelet that bring a model onto a claim."""

from __future__ import annotations

import datetime
from typing import Any

from quire_operator.builders.prefetch_job import MODEL
from quire_operator.kubeapi.resources import DEPLOYMENTS, JOBS, PODS
from tests.operator.api_client import Namespace, Object, eventually
from tests.operator.claims import jobs
from tests.operator.services import manifest

COMMIT = "c0ffee" + "0" * 34
CLAIM = {"cache": {"claimName": "models"}}


def wanting(name: str = "llama", revision: str = COMMIT, **spec: Any) -> Object:
    """A service whose model is downloaded onto the claim `models`."""
    return manifest(name, **{"model": {"source": "hf://org/model", "revision": revision}, "plan": "off"} | CLAIM | spec)


def only_job(namespace: Namespace) -> Object:
    (job,) = eventually(lambda: jobs(namespace))
    return job


def job_for(namespace: Namespace, revision: str) -> Object:
    """The Job that downloads this revision, once it is there."""

    def found() -> Object | None:
        wanted = [j for j in jobs(namespace) if j["metadata"]["annotations"][MODEL].endswith(f"@{revision}")]
        return wanted[0] if wanted else None

    # `eventually` returns only what is not None
    return eventually(found)  # type: ignore[return-value]


def owners(job: Object) -> set[str]:
    return {owner["name"] for owner in job["metadata"].get("ownerReferences", [])}


def now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def add_pod(namespace: Namespace, job: Object, status: Object) -> str:
    """A pod as the Job's controller would make it, with a status as its node would write it."""
    template = job["spec"]["template"]
    identity = {key: job["metadata"][key] for key in ("name", "uid")}
    name = f"{identity['name']}-{identity['uid'][:5]}"
    owner = {"apiVersion": "batch/v1", "kind": "Job", "controller": True, **identity}
    metadata = {"labels": template["metadata"]["labels"], "name": name, "namespace": namespace.name}
    metadata["ownerReferences"] = [owner]
    containers = [{"name": "prefetch", "image": "quire/engine:test"}]
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": containers}}
    namespace.api.create(PODS, body)
    namespace.api.set_status(PODS, namespace.name, name, status)
    return name


def ended(code: int, message: str) -> Object:
    terminated = {"exitCode": code, "reason": "Error" if code else "Completed", "message": message}
    container = {"name": "prefetch", "image": "x", "imageID": "", "ready": False, "restartCount": 0}
    phase = "Failed" if code else "Succeeded"
    return {"phase": phase, "containerStatuses": [{**container, "state": {"terminated": terminated}}]}


def finish(namespace: Namespace, job: Object, *kinds: str, **more: Any) -> None:
    """What the Job's controller would report."""
    at = now()
    conditions = [{"type": kind, "status": "True", "lastTransitionTime": at, **more} for kind in kinds]
    status = {"startTime": at, "conditions": conditions, "uncountedTerminatedPods": {}}
    if "Complete" in kinds:
        status |= {"completionTime": at, "succeeded": 1}
    namespace.api.set_status(JOBS, namespace.name, job["metadata"]["name"], status)


def complete(namespace: Namespace, job: Object, commit: str = COMMIT, size: int = 3 << 30) -> str:
    """The Job is done. Returns the name of its pod."""
    pod = add_pod(namespace, job, ended(0, f'{{"commit": "{commit}", "bytes": {size}}}'))
    finish(namespace, job, "SuccessCriteriaMet", "Complete", reason="CompletionsReached")
    return pod


def fail(namespace: Namespace, job: Object, words: str) -> None:
    add_pod(namespace, job, ended(3, words))
    finish(namespace, job, "FailureTarget", "Failed", reason="PodFailurePolicy", message="exit code 3")


def cached(namespace: Namespace, name: str, reason: str) -> Object:
    """ModelCached, once it has this reason."""

    def condition() -> Object:
        found = namespace.condition(name, "ModelCached")
        assert found.get("reason") == reason, namespace.status(name)
        return found

    return eventually(condition)


def template(namespace: Namespace, name: str = "llama") -> Object:
    found: Object = namespace.get(DEPLOYMENTS, name)["spec"]["template"]
    return found
