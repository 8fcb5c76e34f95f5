"""Whether a model or an adapter that a Job brought onto a claim is there still: claims are emptied, or made anew."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from quire_operator.builders.cached_model import Download
from quire_operator.kubeapi.client import Object
from quire_operator.reconcile.faults import template_hash
from quire_operator.reconcile.prefetching import Seen, pause_after, seconds_of

NOT_CACHED = "ModelNotCached"
"""The engine's reason for a model that its cache lacks while it may ask no hub."""


def loss_of(
    download: Download, seen: Seen, claim_made: str | None, pods: Iterable[Object], newest: str | None
) -> str | None:
    """Why a download that is done has to be made again, in words for people; None where it need not.

    `claim_made` is the creation time of the claim, where that is known; `newest` the hash of the pods' live template. A
    claim counts as made anew only if it is younger than the Job, by the API server's clock alone, so that the Job which
    replaces it settles the matter. What pods say counts once they had as long as a failed download is waited for: each
    time that the download was no help, that is longer.
    """
    done = seen.done_at
    if done is None or seen.job is None:
        return None
    what = f"{download.repository} at {download.revision}"
    if claim_made is not None and seconds_of(claim_made) > max(
        done, seconds_of(seen.job["metadata"]["creationTimestamp"])
    ):
        return f"claim {download.claim} was made anew after {what} was downloaded onto it"
    since = done + pause_after(seen.attempt)
    for pod in pods if newest is not None else ():
        if template_hash(pod) == newest and any(ended > since for ended in _not_cached_at(pod, download.repository)):
            text = f"pod {pod['metadata']['name']} found no {what} on claim {download.claim}"
            return f"{text}, though Job {download.job_name} had brought it there"
    return None


def _not_cached_at(pod: Object, repository: str) -> Iterator[float]:
    """When containers that do not serve ended for want of what is in `repository`."""
    status = pod["status"]
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        for state in (container.get("state"), container.get("lastState")):
            ended: Mapping[str, Any] = (state or {}).get("terminated") or {}
            words = str(ended.get("message") or "").strip().rpartition("\n")[2]
            is_told = words.startswith(f"{NOT_CACHED}:") and f" {repository} at " in words
            if is_told and ended.get("finishedAt") and not container.get("ready"):
                yield seconds_of(str(ended["finishedAt"]))
