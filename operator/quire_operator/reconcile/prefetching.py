"""How far a download onto the cache's claim is, and what pods can load meanwhile."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from quire_operator.api import LLMService
from quire_operator.builders.cached_model import Download, adapter_source, hub_adapters, model_name
from quire_operator.builders.prefetch_job import AGAIN, ATTEMPT, BYTES, COMMIT
from quire_operator.kubeapi.client import Object
from quire_operator.reconcile.faults import Fault, prefetch_fault

Phase = Literal["Pending", "Downloading", "Ready", "Failed"]

_FIRST_RETRY_SECONDS = 60.0
_LONGEST_RETRY_SECONDS = 3600.0
_GIB = 1 << 30


@dataclass(frozen=True)
class Progress:
    """What the download itself says."""

    bytes: int
    total: int | None


@dataclass(frozen=True)
class Seen:
    """What is there of one download."""

    job: Object | None = None
    pods: Sequence[Object] = ()
    progress: Progress | None = None

    def is_owned_by(self, uid: str) -> bool:
        """Whether the LLMService is one of those that the Job is for."""
        references = self.job["metadata"].get("ownerReferences") or [] if self.job is not None else []
        return any(reference.get("uid") == uid for reference in references)

    @property
    def is_done(self) -> bool:
        """The model is on the claim."""
        return _condition(self.job, "Complete") is not None

    @property
    def done_at(self) -> float | None:
        """When the Job was done, in seconds since the epoch; None for one that is not."""
        done = _condition(self.job, "Complete")
        return seconds_of(str(done["lastTransitionTime"])) if done is not None else None

    @property
    def replaces_lost(self) -> str | None:
        """Why what a Job before this one had downloaded is not there any more; None for a first download."""
        return _annotation(self.job, AGAIN)

    @property
    def failed_at(self) -> float | None:
        """When the Job gave up, in seconds since the epoch; None for one that did not."""
        failed = _condition(self.job, "Failed")
        return seconds_of(str(failed["lastTransitionTime"])) if failed is not None else None

    @property
    def attempt(self) -> int:
        """How many Jobs before this one were no help."""
        text = _annotation(self.job, ATTEMPT) or ""
        return int(text) if text.isdecimal() else 0

    def result(self) -> tuple[str | None, int | None]:
        """Commit and bytes on the claim, from the Job once it was told, before that from its pod's last words."""
        commit, size = _annotation(self.job, COMMIT), _annotation(self.job, BYTES)
        if commit is not None:
            return commit, int(size) if size and size.isdecimal() else None
        return next((words for pod in self.pods if (words := _last_words(pod)) is not None), (None, None))

    def retry_in(self, now: float) -> float | None:
        """Seconds until a failed download is tried again, 0 when it is due; None for one that did not fail."""
        if self.failed_at is None:
            return None
        return max(0.0, self.failed_at + pause_after(self.attempt) - now)


@dataclass(frozen=True, kw_only=True)
class DownloadState:
    """One download, as a service that wants it sees it."""

    download: Download
    phase: Phase
    cached_revision: str | None = None
    """What pods can load from the claim as of now; None when there is nothing of this model or adapter."""

    bytes: int | None = None
    total: int | None = None
    fault: Fault | None = None
    """Why what is wanted is not there; None once it is."""

    retry_after: float | None = None
    """Seconds after which to look again though nothing was heard."""


def pause_after(attempt: int) -> float:
    """Seconds after which a Job that comes after so many is made again, if it was no help either."""
    return min(_LONGEST_RETRY_SECONDS, _FIRST_RETRY_SECONDS * 2.0 ** min(attempt, 16))


def download_state(
    service: LLMService,
    download: Download,
    seen: Seen,
    now: float,
    loss: str | None = None,
    adapter: str | None = None,
) -> DownloadState:
    """Judge what is there of the download that the service wants. `now` is in seconds since the epoch.

    `adapter` is the name of the one that it is of, None where it is the model. `loss` says why what a Job has
    downloaded is not there any more.
    """
    if loss is not None:
        lost = Fault("ModelNotCached", f"{loss}: it is downloaded again", False)
        return DownloadState(download=download, phase="Pending", fault=lost)
    if seen.is_done:
        commit, size = seen.result()
        revision = commit or download.revision
        return DownloadState(download=download, phase="Ready", cached_revision=revision, bytes=size, total=size)
    earlier = _earlier(service, download, adapter) if seen.replaces_lost is None else None
    fault = prefetch_fault(download.namespace, seen.pods)
    if seen.failed_at is not None:
        return DownloadState(
            download=download,
            phase="Failed",
            cached_revision=earlier,
            fault=_failed(download, fault),
            retry_after=seen.retry_in(now),
        )
    if fault is not None:
        return DownloadState(download=download, phase="Pending", cached_revision=earlier, fault=_retried(fault))
    is_running = any(pod["status"].get("phase") == "Running" for pod in seen.pods)
    progress = seen.progress if is_running else None
    return DownloadState(
        download=download,
        phase="Downloading" if is_running else "Pending",
        cached_revision=earlier,
        bytes=progress.bytes if progress else None,
        total=progress.total if progress else None,
        fault=Fault("Downloading", _under_way(download, seen.pods, progress), False),
    )


def seconds_of(time: str) -> float:
    """A time of the API server, in seconds since the epoch."""
    return datetime.datetime.fromisoformat(time.replace("Z", "+00:00")).timestamp()


def gib(size: int) -> str:
    """Bytes for people."""
    return f"{size / _GIB:.2f} GiB"


def _earlier(service: LLMService, download: Download, adapter: str | None) -> str | None:
    """The commit that pods load of it already: one that a branch has left is served until the next is there."""
    known = service.status.cache
    if known is None or known.claim_name != download.claim:
        return None
    if adapter is None:
        return known.commit if known.model == model_name(service) else None
    wanted = next(adapter_source(found) for found, _ in hub_adapters(service) if found.name == adapter)
    return next((c.commit for c in known.adapters or [] if (c.name, c.source) == (adapter, wanted)), None)


def _failed(download: Download, fault: Fault | None) -> Fault:
    retry = f"kubectl delete job -n {download.namespace} {download.job_name}"
    after = f"It is tried again after a while, or at once with an edit of the spec or `{retry}`"
    if fault is None:
        name = f"Job {download.job_name}"
        return Fault("DownloadFailed", f"{name} failed, and none of its pods is left to say why. {after}", True)
    return Fault(_reason(fault), f"{fault.message.rstrip('.')}. {after}", True)


def _retried(fault: Fault) -> Fault:
    return Fault(_reason(fault), fault.message, False)


def _reason(fault: Fault) -> str:
    return "DownloadFailed" if fault.reason == "EngineFailed" else fault.reason


def _under_way(download: Download, pods: Sequence[Object], progress: Progress | None) -> str:
    what = f"{download.repository} at {download.revision}"
    running = [pod for pod in pods if pod["status"].get("phase") == "Running"]
    if not running:
        waits = f"{what} waits for a pod of Job {download.job_name}, which brings it onto claim {download.claim}"
        which = f"pod {pods[-1]['metadata']['name']}" if pods else f"job {download.job_name}"
        return f"{waits}: should it not start, `kubectl describe -n {download.namespace} {which}` says why"
    if progress is None or progress.total is None:
        return f"{what} is being downloaded onto claim {download.claim}"
    return f"{gib(progress.bytes)} of {gib(progress.total)} of {what} are on claim {download.claim}"


def _last_words(pod: Object) -> tuple[str | None, int | None] | None:
    for container in pod["status"].get("containerStatuses") or []:
        ended = (container.get("state") or {}).get("terminated") or {}
        if ended.get("exitCode") != 0:
            continue
        try:
            words = json.loads(str(ended.get("message")))
            return str(words["commit"]), int(words["bytes"])
        except (ValueError, KeyError, TypeError):
            continue
    return None


def _condition(job: Object | None, kind: str) -> Mapping[str, Any] | None:
    conditions = (job.get("status") or {}).get("conditions") or [] if job is not None else []
    return next((c for c in conditions if c.get("type") == kind and c.get("status") == "True"), None)


def _annotation(job: Object | None, name: str) -> str | None:
    found: str | None = ((job or {}).get("metadata") or {}).get("annotations", {}).get(name)
    return found
