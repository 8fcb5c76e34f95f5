"""Commits that a download must leave on the claim, and whether its Job knows of them, which cannot be changed."""

from __future__ import annotations

from collections.abc import Iterable

from quire_operator.builders.cached_model import Download, is_commit
from quire_operator.builders.prefetch_job import COMMIT, KEEP, MODEL
from quire_operator.kubeapi.client import Object
from quire_operator.reconcile.prefetching import Seen


def model_of(job: Object) -> tuple[str, str | None]:
    """The repository that a Job downloads, and the commit of it where that is known."""
    annotations = job["metadata"].get("annotations") or {}
    repository, _, revision = str(annotations.get(MODEL, "")).rpartition("@")
    commit = annotations.get(COMMIT, revision)
    return repository, commit if is_commit(commit) else None


def overlooked(download: Download, seen: Seen, commits: Iterable[str]) -> set[str]:
    """Those of `commits`, which others have downloaded meanwhile, that an unfinished Job would remove from the claim.

    While its first pod runs it leaves alone what somebody wants from then on. But it may have waited for long before
    that, and each pod after one that failed looks anew, and knows nothing of what came before itself.
    """
    if seen.job is None or seen.is_done or seen.failed_at is not None or _first_runs(seen.job, seen.pods):
        return set()
    known = str((seen.job["metadata"].get("annotations") or {}).get(KEEP, "")).split(",")
    return {*commits} - {*known, download.revision}


def _first_runs(job: Object, pods: Iterable[Object]) -> bool:
    """Whether a pod of the Job has started, and none before it."""
    phases = [(pod.get("status") or {}).get("phase") for pod in pods]
    failed = "Failed" in phases or (job.get("status") or {}).get("failed")  # one that is gone is counted still
    return not failed and any(phase not in (None, "Pending") for phase in phases)
