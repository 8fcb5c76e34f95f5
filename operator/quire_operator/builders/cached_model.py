"""What is of the hub on the cache's claim: who wants it there, under which key, and how pods are told to find it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from quire_operator.api import HubSource, LLMService, parse_source
from quire_operator.api.model import Adapter
from quire_operator.builders.circumstances import Circumstances
from quire_operator.builders.claim import cache_claim_name
from quire_operator.builders.identity import Manifest, digest
from quire_operator.builders.paths import hub_home

BRANCH = "main"
"""What a model or an adapter without a revision is of."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_TRUE = ("1", "ON", "YES", "TRUE")


@dataclass(frozen=True)
class Download:
    """One revision of a model or an adapter on one claim. Services of a namespace that want the same share it."""

    namespace: str
    claim: str
    repository: str
    revision: str
    """The commit where it is known, else a branch or tag."""

    any_format: bool = False
    """Whether the weights may be in a format that only other engines read. What fails for ours may do for those."""

    is_adapter: bool = False
    """Whether only a LoRA adapter is taken from the repository."""

    @property
    def key(self) -> str:
        """What tells it from every other download of the namespace; a label's value."""
        kinds = [*(("any format",) if self.any_format else ()), *(("adapter",) if self.is_adapter else ())]
        return digest([self.claim, self.repository, self.revision, *kinds])

    @property
    def job_name(self) -> str:
        """The Job that does it."""
        return f"quire-prefetch-{self.key}"

    @property
    def commit(self) -> str | None:
        """The revision, where that is a commit."""
        return self.revision if is_commit(self.revision) else None


def downloads_of(service: LLMService, commit: str | None) -> Mapping[str | None, Download]:
    """Everything that has to be on the claim before the service's pods start: adapters by name, the model under None.

    `commit` is what the spec's branch or tag of the model stands for, where that is known.
    """
    model = download_of(service, commit)
    found: dict[str | None, Download] = {None: model} if model is not None else {}
    return found | _adapter_downloads(service)


def download_of(service: LLMService, commit: str | None) -> Download | None:
    """What of the model has to be on the claim before pods start; None where they see to their weights themselves.

    `commit` is what the spec's branch or tag stands for, where that is known.
    """
    claim, source = cache_claim_name(service), parse_source(service.spec.model.source)
    if claim is None or not isinstance(source, HubSource) or not _is_prefetched(service):
        return None
    revision = commit or service.spec.model.revision or BRANCH
    return Download(service.metadata.namespace, claim, source.repository, revision, reads_any_format(service))


def _adapter_downloads(service: LLMService) -> dict[str | None, Download]:
    claim, namespace = cache_claim_name(service), service.metadata.namespace
    if claim is None or not _is_prefetched(service):
        return {}
    return {
        adapter.name: Download(
            namespace,
            claim,
            source.repository,
            adapter.revision or BRANCH,
            any_format=reads_any_format(service),
            is_adapter=True,
        )
        for adapter, source in hub_adapters(service)
    }


def hub_adapters(service: LLMService) -> list[tuple[Adapter, HubSource]]:
    """The adapters that are on a hub."""
    found = [(adapter, parse_source(adapter.source)) for adapter in service.spec.model.adapters]
    return [(adapter, source) for adapter, source in found if isinstance(source, HubSource)]


def adapter_directory(service: LLMService, adapter: Adapter) -> str | None:
    """Where an adapter of the hub lies once it was downloaded; None for one that was not, or whose commit is unknown.

    For engines that take no revision of an adapter.
    """
    download = _adapter_downloads(service).get(adapter.name)
    if download is None or download.commit is None:
        return None
    return f"{hub_home(service)}/hub/models--{download.repository.replace('/', '--')}/snapshots/{download.commit}"


def reads_any_format(service: LLMService) -> bool:
    """Whether the engine may read weights that are no safetensors, which Quire's own does not."""
    return service.spec.engine.type != "quire"


def model_name(service: LLMService) -> str:
    """The model as the spec asks for it: its source, with `@REVISION` where that is on a hub."""
    source = service.spec.model.source
    if not isinstance(parse_source(source), HubSource):
        return source
    return f"{source}@{service.spec.model.revision or BRANCH}"


def adapter_source(adapter: Adapter) -> str:
    """An adapter of the hub as the spec asks for it: its source and revision."""
    return f"{adapter.source}@{adapter.revision or BRANCH}"


def is_commit(revision: str) -> bool:
    """Whether a revision can never mean anything else."""
    return _COMMIT.fullmatch(revision) is not None


def is_offline(service: LLMService, circumstances: Circumstances) -> bool:
    """Whether engines need no hub, since all that they load is on a volume. Draft models of a hub are on none."""
    spec = service.spec
    draft = spec.engine.speculative.model if spec.engine.speculative is not None else None
    if draft is not None and isinstance(parse_source(draft), HubSource):
        return False
    has_model = circumstances.cached_revision is not None or not isinstance(parse_source(spec.model.source), HubSource)
    has_adapters = all(adapter.name in circumstances.cached_adapters for adapter, _ in hub_adapters(service))
    has_copy = spec.cache is not None and spec.cache.local is not None
    return has_copy or (has_model and has_adapters)


def asks_no_hub(env: Iterable[Manifest]) -> bool:
    """Whether an engine with these variables leaves hubs alone."""
    return any(v["name"] == "HF_HUB_OFFLINE" and str(v.get("value", "")).upper() in _TRUE for v in env)


def pinned(service: LLMService, circumstances: Circumstances) -> LLMService:
    """The service with the revisions that are on the claim, so that all its pods load the same."""
    model, adapters = service.spec.model, circumstances.cached_adapters
    if circumstances.cached_revision is not None:
        model = model.model_copy(update={"revision": circumstances.cached_revision})
    if adapters:
        fixed = [a.model_copy(update={"revision": adapters.get(a.name, a.revision)}) for a in model.adapters]
        model = model.model_copy(update={"adapters": fixed})
    return service.model_copy(update={"spec": service.spec.model_copy(update={"model": model})})


def _is_prefetched(service: LLMService) -> bool:
    cache, env = service.spec.cache, service.spec.engine.env
    # who forbids the pods to ask a hub has filled the claim by other means
    return cache is not None and cache.prefetch and not service.spec.suspend and not asks_no_hub(env)
