"""The plan of each LLMService, from what is known of its model and of the GPUs."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

from quire_engine.memory_plan.model_facts import ModelFacts
from quire_operator.api import ClaimSource, LLMService, parse_source
from quire_operator.builders.cached_model import model_name
from quire_operator.kubeapi.client import Client
from quire_operator.kubeapi.errors import ApiError, UnreachableError
from quire_operator.kubeapi.reflector import Key
from quire_operator.kubeapi.resources import SECRETS
from quire_operator.plan.gpu_memory import KnownGPUs, Skipped, device_of
from quire_operator.plan.hub_source import hub_endpoint, hub_refused, repository_of
from quire_operator.plan.service_plan import cannot_be_planned, in_the_image, plan_of, skipped_plan
from quire_operator.reconcile.planning import Planned, was_accepted
from quire_operator.run.claim_models import ClaimModels
from quire_operator.run.hub_models import RETRY_SECONDS, HubModels
from quire_operator.run.node_gpus import NodeGPUs
from quire_operator.settings import Settings
from quire_operator.sources.hub import HubError, HubModel

_PASSING = ("HubUnreachable", "NotReadYet")
_OF_THE_HUB = ("HubUnreachable", "ModelGated", "ModelUnknownToHub")


class Plans:
    """Use as an async context manager. `changed` is called with each LLMService whose plan may be had now."""

    def __init__(self, client: Client, settings: Settings, changed: Callable[[Key], None]) -> None:
        self._client, self._settings = client, settings
        self._models = HubModels(changed)
        self._claims = ClaimModels(client, settings, changed)
        self._nodes = NodeGPUs(client, changed)

    async def __aenter__(self) -> Self:
        await self._models.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._nodes.close()
        await self._claims.close()
        await self._models.__aexit__(*error)

    def loops(self) -> list[Coroutine[Any, Any, None]]:
        """Endless coroutines: the watches of what plans wait for."""
        return self._claims.loops()

    def of(self, service: LLMService) -> Planned | None:
        """The plan; None while what it needs is being read. Never waits."""
        spec, source = service.spec, parse_source(service.spec.model.source)
        refused = cannot_be_planned(spec) or in_the_image(source)
        if refused is not None:
            return Planned(plan=skipped_plan(refused))
        nodes = self._node_labels(service)
        if nodes is None:
            return None
        device = device_of(spec, KnownGPUs(nodes, self._settings.products()))
        if isinstance(source, ClaimSource):
            if _is_planned(service):
                return Planned.of_status(service.status)  # a pod that mounts the claim is not worth a second look
            facts = device if isinstance(device, Skipped) else self._claims.get(service, source)
        else:
            facts = self._on_hub(service)
        if facts is None:
            return None
        if isinstance(facts, Skipped):
            if facts.reason in _OF_THE_HUB and _was_read(service):
                return _as_read(service, facts)
            again = RETRY_SECONDS if facts.reason in _PASSING else None
            return Planned(plan=skipped_plan(self._explained(service, facts)), again_after=again)
        return Planned(
            plan=plan_of(spec, facts, device),
            commit=facts.commit,
            max_model_len=spec.model.max_model_len or facts.longest,
            quantization=facts.quantization,
            parameters=facts.parameters,
        )

    def _on_hub(self, service: LLMService) -> ModelFacts | Skipped | None:
        endpoint = hub_refused(service, self._settings) or hub_endpoint(service, self._settings)
        if isinstance(endpoint, Skipped):
            return endpoint
        key = (service.metadata.namespace, service.metadata.name)
        model = HubModel(endpoint, repository_of(service), service.spec.model.revision or "main")
        return self._models.get(key, model, self._account(service), lambda: self._token(service))

    def _node_labels(self, service: LLMService) -> Sequence[Mapping[str, str]] | None:
        gpu = service.spec.resources.gpu
        if service.spec.gpus_per_pod == 0 or gpu.memory_gib is not None or self._settings.namespaces:
            return ()  # nodes are not asked for by an operator of some namespaces: they belong to none
        return self._nodes.labels((service.metadata.namespace, service.metadata.name))

    def _account(self, service: LLMService) -> str:
        """Whose eyes a gated model is seen with."""
        ref = service.spec.model.token_secret_ref
        if ref is None or not self._settings.plan_reads_tokens:
            return ""
        return f"{service.metadata.namespace}/{ref.name}/{ref.key}"

    async def _token(self, service: LLMService) -> str | None:
        ref = service.spec.model.token_secret_ref
        if ref is None or not self._settings.plan_reads_tokens:
            return None
        where = f"key {ref.key} of Secret {ref.name}"
        try:
            secret = await self._client.get(SECRETS, service.metadata.namespace, ref.name)
            return base64.b64decode(((secret or {}).get("data") or {})[ref.key]).decode().strip()
        except (ApiError, UnreachableError) as error:
            raise HubError("ModelGated", f"{where} cannot be read: {type(error).__name__}") from None
        except (KeyError, binascii.Error, UnicodeDecodeError):
            raise HubError("ModelGated", f"{where} is not there, or holds no text") from None

    def _explained(self, service: LLMService, why: Skipped) -> Skipped:
        if why.reason != "ModelGated" or service.spec.model.token_secret_ref is None:
            return why
        if self._settings.plan_reads_tokens:
            return why
        return Skipped(why.reason, f"{why.message}; the operator reads Secrets only with --plan-reads-tokens")


def _is_planned(service: LLMService) -> bool:
    """Whether the status has a plan of this very spec, as after a restart."""
    plan = service.status.plan
    return was_accepted(service) and plan is not None and plan.verdict != "Skipped"


def _was_read(service: LLMService) -> bool:
    """Whether the status tells of the very model that the spec asks for, as its hub once gave it."""
    model = service.status.model
    if model is None or model.source != model_name(service):
        return False
    return model.parameters is not None or model.quantization is not None


def _as_read(service: LLMService, why: Skipped) -> Planned:
    """What was learned before the hub went away, or the token: the commit is still served, and its download the same.

    An edit has no plan meanwhile. Where a branch was being followed, the status names the commit that it left.
    """
    cache, known = service.status.cache, Planned.of_status(service.status)
    is_followed = cache is not None and cache.commit is not None and cache.phase != "Ready"
    plan = known.plan if was_accepted(service) else skipped_plan(why)
    return replace(known, plan=plan, is_from_status=is_followed, again_after=RETRY_SECONDS)
