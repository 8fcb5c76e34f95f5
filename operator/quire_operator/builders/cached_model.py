"""A model of the hub on the cache's claim: who wants it there, under which key, and how pods are told to find it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from quire_operator.api import HubSource, LLMService, parse_source
from quire_operator.builders.claim import cache_claim_name
from quire_operator.builders.identity import Manifest, digest
from quire_operator.builders.paths import sources

BRANCH = "main"
"""What a service without spec.model.revision asks for."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_TRUE = ("1", "ON", "YES", "TRUE")


@dataclass(frozen=True)
class Download:
    """One revision of one model on one claim. Services of a namespace that want the same share it."""

    namespace: str
    claim: str
    repository: str
    revision: str
    """The commit where it is known, else a branch or tag."""

    any_format: bool = False
    """Whether the weights may be in a format that only other engines read. What fails for ours may do for those."""

    @property
    def key(self) -> str:
        """What tells it from every other download of the namespace; a label's value."""
        return digest([self.claim, self.repository, self.revision, *(("any format",) if self.any_format else ())])

    @property
    def job_name(self) -> str:
        """The Job that does it."""
        return f"quire-prefetch-{self.key}"

    @property
    def commit(self) -> str | None:
        """The revision, where that is a commit."""
        return self.revision if is_commit(self.revision) else None


def download_of(service: LLMService, commit: str | None) -> Download | None:
    """What has to be on the claim before the service's pods start; None where pods see to their weights themselves.

    `commit` is what the spec's branch or tag stands for, where that is known.
    """
    claim, source = cache_claim_name(service), parse_source(service.spec.model.source)
    if claim is None or not isinstance(source, HubSource) or not _is_prefetched(service):
        return None
    revision = commit or service.spec.model.revision or BRANCH
    return Download(service.metadata.namespace, claim, source.repository, revision, reads_any_format(service))


def reads_any_format(service: LLMService) -> bool:
    """Whether the engine may read weights that are no safetensors, which Quire's own does not."""
    return service.spec.engine.type != "quire"


def model_name(service: LLMService) -> str:
    """The model as the spec asks for it: its source, with `@REVISION` where that is on a hub."""
    source = service.spec.model.source
    if not isinstance(parse_source(source), HubSource):
        return source
    return f"{source}@{service.spec.model.revision or BRANCH}"


def is_commit(revision: str) -> bool:
    """Whether a revision can never mean anything else."""
    return _COMMIT.fullmatch(revision) is not None


def is_offline(service: LLMService, cached_revision: str | None) -> bool:
    """Whether engines need no hub, since all that they load is on a volume. Adapters and draft models are on none."""
    model, *others = (isinstance(source, HubSource) for source in sources(service))
    has_copy = service.spec.cache is not None and service.spec.cache.local is not None
    return model and (cached_revision is not None or has_copy) and not any(others)


def asks_no_hub(env: Iterable[Manifest]) -> bool:
    """Whether an engine with these variables leaves hubs alone."""
    return any(v["name"] == "HF_HUB_OFFLINE" and str(v.get("value", "")).upper() in _TRUE for v in env)


def pinned(service: LLMService, cached_revision: str | None) -> LLMService:
    """The service with its model's revision as it is on the claim, so that all its pods load the same."""
    if cached_revision is None:
        return service
    model = service.spec.model.model_copy(update={"revision": cached_revision})
    return service.model_copy(update={"spec": service.spec.model_copy(update={"model": model})})


def _is_prefetched(service: LLMService) -> bool:
    cache, env = service.spec.cache, service.spec.engine.env
    # who forbids the pods to ask a hub has filled the claim by other means
    return cache is not None and cache.prefetch and not service.spec.suspend and not asks_no_hub(env)
