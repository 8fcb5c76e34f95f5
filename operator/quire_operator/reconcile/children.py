"""Carries changes out, and says what stood in the way."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

from quire_operator.api import LLMService
from quire_operator.builders.circumstances import Circumstances
from quire_operator.builders.identity import APPLIED_HASH, FIELD_MANAGER, Manifest
from quire_operator.builders.scaling import with_first_replicas
from quire_operator.builders.workload import workload_reference
from quire_operator.kubeapi.client import Client, Object
from quire_operator.kubeapi.errors import ApiError
from quire_operator.kubeapi.resources import Resource, child_resource, resource_of
from quire_operator.kubeapi.trimming import OWNS_REPLICAS, trim_child
from quire_operator.reconcile.changes import Apply, Change, ChildKey, Delete, is_aside, is_scaler
from quire_operator.reconcile.ownership import Ownership, ownership

logger = logging.getLogger(__name__)

HANDOVER_MANAGER = f"{FIELD_MANAGER}-handover"
"""Holds spec.replicas when we let go of it: a field that loses its only owner falls back to its default."""

_GRANT = "Give the operator the role of its version"


@dataclass(frozen=True)
class Problem:
    """Why a child is not as it should be, until somebody acts."""

    reason: str
    message: str


@dataclass
class Outcome:
    """What came of the changes."""

    applied: dict[ChildKey, Object] = field(default_factory=dict)
    """Answers of the API server, whole."""

    deleted: list[ChildKey] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    aside: dict[ChildKey, Problem] = field(default_factory=dict)
    """Problems of children without which the service serves: a condition of their own tells of them."""

    waiting_for: list[ChildKey] = field(default_factory=list)
    """Children that must go before they can be made anew."""

    settled: dict[ChildKey, tuple[str, str]] = field(default_factory=dict)
    """Digest and resourceVersion of those that an apply did not change."""

    def report(self, key: ChildKey, problem: Problem) -> None:
        """Take in why this child is not as it should be."""
        if is_aside(key[0]):
            self.aside[key] = problem
        else:
            self.problems.append(problem)


async def carry_out(
    client: Client, service: LLMService, todo: Iterable[Change], circumstances: Circumstances
) -> Outcome:
    """Apply and delete. Raises what is worth another attempt: UnreachableError, and ApiErrors that are no refusals."""
    outcome, target = Outcome(), workload_reference(service)
    workload = (target["kind"], target["name"])
    troubled: set[ChildKey] = set()
    for change in todo:
        match change:
            case Apply(manifest):
                key = (manifest["kind"], manifest["metadata"]["name"])
                if is_scaler(key[0]) and workload in troubled:
                    continue  # its replicas were not handed over, or it is a predecessor's
                await _apply(client, service, change, outcome, circumstances)
                if key not in outcome.applied:
                    troubled.add(key)
            case Delete(kind, live):
                await _delete(client, kind, live, outcome)
                if is_scaler(kind) and (kind, live["metadata"]["name"]) not in outcome.deleted:
                    return outcome  # it goes on to set replicas, which would be fought over
    return outcome


async def _delete(client: Client, kind: str, live: Object, outcome: Outcome) -> None:
    resource, metadata = child_resource(kind), live["metadata"]
    logger.info("deleting %s %s: no longer wanted", kind, metadata["name"])
    try:
        await client.delete(resource, metadata["namespace"], metadata["name"], metadata["uid"])
    except ApiError as error:
        _take_in(outcome, resource, metadata["name"], error)
    else:
        outcome.deleted.append((kind, metadata["name"]))


async def _apply(
    client: Client, service: LLMService, change: Apply, outcome: Outcome, circumstances: Circumstances
) -> None:
    manifest, resource = change.manifest, resource_of(change.manifest)
    namespace, name = manifest["metadata"]["namespace"], manifest["metadata"]["name"]
    key = (resource.kind, name)
    live = change.live
    try:
        if live is None:
            found = await client.get(resource, namespace, name)
            live = trim_child(found) if found is not None else None
        if live is not None:
            match ownership(live, service):
                case Ownership.FOREIGN:
                    outcome.report(key, name_conflict(resource, name))
                    return
                case Ownership.LEAVING:
                    outcome.waiting_for.append(key)
                    return
                case Ownership.OURS:
                    pass
        if live is not None:
            await _hand_replicas_over(client, resource, manifest, live)
        else:
            manifest = with_first_replicas(service, circumstances, manifest)
        answer = await client.apply(resource, manifest, FIELD_MANAGER, force=True)
    except ApiError as error:
        _take_in(outcome, resource, name, error)
        return
    outcome.applied[key] = answer
    version = answer["metadata"]["resourceVersion"]
    if live is not None and live["metadata"]["resourceVersion"] == version:
        outcome.settled[key] = (manifest["metadata"]["annotations"][APPLIED_HASH], version)
    else:
        logger.info("applied %s %s: %s", resource.kind, name, change.why)


def _take_in(outcome: Outcome, resource: Resource, name: str, error: ApiError) -> None:
    """Have a condition tell of a child that is refused. Raises an error that is worth another attempt."""
    key = (resource.kind, name)
    if is_aside(resource.kind) and (error.is_refusal or error.is_of_webhook):
        outcome.report(key, _refused_aside(resource, name, error))
    elif error.is_refusal:
        outcome.report(key, refused(resource, name, error))
    else:
        raise error


async def _hand_replicas_over(client: Client, resource: Resource, manifest: Manifest, live: Object) -> None:
    if not live.get(OWNS_REPLICAS) or "replicas" in manifest["spec"]:
        return
    identity = {key: manifest["metadata"][key] for key in ("name", "namespace")}
    count = {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": identity,
        "spec": {"replicas": live["spec"]["replicas"]},
    }
    await client.apply(resource, count, HANDOVER_MANAGER, force=False)


def name_conflict(resource: Resource, name: str) -> Problem:
    """What it means that an object of this name is somebody else's."""
    return Problem(
        "NameConflict",
        f"{resource.kind} {name} exists and is not this LLMService's: "
        "delete or rename it, or give the LLMService another name",
    )


def refused(resource: Resource, name: str, error: ApiError) -> Problem:
    """What it means that the API server refuses an object."""
    reason = "QuotaExceeded" if "exceeded quota" in error.message else "ChildRefused"
    next_step = "Change the field that it names, spec.podTemplate among them, or have the policy changed"
    if error.is_of_rights:
        next_step = _GRANT
    return Problem(reason, f"the API server refuses {resource.kind} {name}: {error.message}. {next_step}")


def _refused_aside(resource: Resource, name: str, error: ApiError) -> Problem:
    field = "spec.autoscaling" if is_scaler(resource.kind) else "spec.monitoring"
    if "already managed by" in error.message:
        next_step = "Remove that one, or leave spec.autoscaling out"
        return Problem("ConflictingScaler", f"{resource.kind} {name} is refused: {error.message}. {next_step}")
    next_step = f"Correct it in {field}, or have the policy changed"
    if error.is_of_rights:
        next_step = _GRANT
    elif error.is_of_webhook:
        next_step = "It is tried again: see that what answers the webhook runs"
    return Problem("ChildRefused", f"the API server refuses {resource.kind} {name}: {error.message}. {next_step}")
