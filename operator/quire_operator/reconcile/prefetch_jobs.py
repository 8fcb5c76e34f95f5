"""Jobs that download: made by the first service that wants one, shared with others, left when none does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from quire_operator.api import LLMService
from quire_operator.builders.cached_model import Download
from quire_operator.builders.identity import PREFETCH_LABEL, Manifest
from quire_operator.builders.prefetch_job import BYTES, COMMIT, shared_owner_reference
from quire_operator.kubeapi.client import Client, Object
from quire_operator.kubeapi.errors import ApiError
from quire_operator.kubeapi.resources import JOBS
from quire_operator.reconcile.children import Problem, name_conflict, refused
from quire_operator.reconcile.planning import was_accepted
from quire_operator.reconcile.prefetching import Seen

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Make:
    """Create the Job, in place of one that was no help where there is such."""

    manifest: Manifest
    replaced: Object | None = None
    loss: str | None = None
    """Why what the one before has downloaded is not there any more."""


@dataclass(frozen=True)
class Join:
    """Become an owner of a Job that another service made."""

    job: Object
    owner: Manifest


@dataclass(frozen=True)
class Leave:
    """Own the Job no longer; who is the last takes it along."""

    job: Object
    uid: str


@dataclass(frozen=True)
class Note:
    """Write onto the Job what its pod said in the end: the pod may go before the Job."""

    job: Object
    commit: str
    size: int | None


class _NameTakenError(Exception):
    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


JobChange = Make | Join | Leave | Note


@dataclass
class JobOutcome:
    """What came of the changes."""

    jobs: list[Object] = field(default_factory=list)
    """Answers of the API server."""

    problem: Problem | None = None


def job_changes(
    service: LLMService,
    seen: Seen,
    make: Callable[[int, str | None], Manifest],
    now: float,
    loss: str | None = None,
    overlooked: Collection[str] = (),
) -> list[JobChange]:
    """What to do about one download that the service wants, in order. Nothing at steady state.

    `make` builds a Job that comes after so many that were no help, and says why what was downloaded before is not there
    any more. `loss` says that of the Job that is `seen`; `overlooked` are commits that it would remove from the claim,
    and must not.
    """
    uid = service.metadata.uid
    if seen.job is None:
        return [Make(make(0, None))]
    if seen.job["metadata"].get("deletionTimestamp"):
        return []
    is_edited = not was_accepted(service)
    if loss is not None:
        return [Make(make(seen.attempt + 1, loss), seen.job, loss)]
    if seen.failed_at is not None and (is_edited or seen.retry_in(now) == 0):
        return [Make(make(0 if is_edited else seen.attempt + 1, seen.replaces_lost), seen.job)]
    if overlooked:
        return [Make(make(seen.attempt, seen.replaces_lost), seen.job)]
    todo: list[JobChange] = []
    if not seen.is_owned_by(uid):
        todo.append(Join(seen.job, shared_owner_reference(service)))
    commit, size = seen.result()
    if seen.is_done and commit is not None and COMMIT not in (seen.job["metadata"].get("annotations") or {}):
        todo.append(Note(seen.job, commit, size))
    return todo


def departures(service: LLMService, wanted: Iterable[Download], owned: Iterable[Object]) -> list[JobChange]:
    """Of the Jobs that have the service as an owner, those that it wants no more are left."""
    names = {download.job_name for download in wanted}
    return [Leave(job, service.metadata.uid) for job in owned if job["metadata"]["name"] not in names]


def losses(todo: Iterable[JobChange]) -> list[str]:
    """Why models are downloaded again that had been downloaded."""
    return [change.loss for change in todo if isinstance(change, Make) and change.loss is not None]


async def carry_out_job_changes(client: Client, todo: Iterable[JobChange]) -> JobOutcome:
    """Do it. Raises what is worth another attempt: UnreachableError, and ApiErrors that are no refusals."""
    outcome = JobOutcome()
    for change in todo:
        try:
            answer = await _carry_out(client, change)
        except _NameTakenError as error:
            outcome.problem = error.problem
            continue
        except ApiError as error:
            if not error.is_refusal:
                raise  # a conflict among them: another service was faster
            name = change.manifest["metadata"]["name"] if isinstance(change, Make) else change.job["metadata"]["name"]
            outcome.problem = refused(JOBS, name, error)
            continue
        if answer is not None:
            outcome.jobs.append(answer)
    return outcome


async def _carry_out(client: Client, change: JobChange) -> Object | None:
    match change:
        case Make(manifest, replaced, loss):
            if replaced is not None:
                await _delete(client, replaced, loss or "to try again")
            logger.info("making Job %s", manifest["metadata"]["name"])
            return await _create(client, manifest)
        case Join(job, owner):
            return await _edit_owners(client, job, lambda owners: [*owners, owner])
        case Leave(job, uid):
            others = [owner for owner in _owners(job) if owner.get("uid") != uid]
            if not others:
                await _delete(client, job, "no longer wanted")
                return None
            return await _edit_owners(client, job, lambda owners: [o for o in owners if o.get("uid") != uid])
        case Note(job, commit, size):
            noted = {COMMIT: commit, **({BYTES: str(size)} if size is not None else {})}
            return await _edit(client, job, lambda metadata: _annotate(metadata, noted))


async def _create(client: Client, manifest: Manifest) -> Object | None:
    try:
        return await client.create(JOBS, manifest)
    except ApiError as error:
        if error.status != 409:
            raise
    metadata = manifest["metadata"]
    found = await client.get(JOBS, metadata["namespace"], metadata["name"])
    if found is not None and (found["metadata"].get("labels") or {}).get(PREFETCH_LABEL) is None:
        raise _NameTakenError(name_conflict(JOBS, metadata["name"]))
    return found  # another service was faster, and this one joins it next


async def _delete(client: Client, job: Object, why: str) -> None:
    metadata = job["metadata"]
    logger.info("deleting Job %s: %s", metadata["name"], why)
    await client.delete(JOBS, metadata["namespace"], metadata["name"], metadata["uid"])


async def _edit_owners(client: Client, job: Object, edit: Callable[[list[Object]], list[Object]]) -> Object | None:
    return await _edit(
        client, job, lambda metadata: metadata.update(ownerReferences=edit(_owners({"metadata": metadata})))
    )


async def _edit(client: Client, job: Object, edit: Callable[[dict[str, Any]], None]) -> Object | None:
    """Change the Job's metadata. By replacing it as it is now, since its owners come and go at the same time."""
    fresh = await client.get(JOBS, job["metadata"]["namespace"], job["metadata"]["name"])
    if fresh is None or fresh["metadata"]["uid"] != job["metadata"]["uid"]:
        return None
    edit(fresh["metadata"])
    return await client.replace(JOBS, fresh)


def _annotate(metadata: dict[str, Any], noted: dict[str, str]) -> None:
    metadata["annotations"] = {**(metadata.get("annotations") or {}), **noted}


def _owners(job: Object) -> list[Object]:
    return list(job["metadata"].get("ownerReferences") or [])
