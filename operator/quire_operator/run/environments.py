"""What each LLMService finds in its namespace and is asked for, looked at now and then."""

from __future__ import annotations

import logging
from collections.abc import Callable

from quire_operator.api import LLMService
from quire_operator.builders.claim import cache_claim_name, claim_facts
from quire_operator.kubeapi.client import Client
from quire_operator.kubeapi.errors import ApiError, UnreachableError
from quire_operator.kubeapi.reflector import Key
from quire_operator.kubeapi.resources import CLAIMS, NAMESPACES
from quire_operator.plan.claim_modes import ONE_POD, ClaimFacts
from quire_operator.reconcile.environment import AGAIN_SECONDS, Environment
from quire_operator.run.lookups import Lookups
from quire_operator.run.request_lengths import RequestLengths

logger = logging.getLogger(__name__)

_FRESH_SECONDS = 600.0
"""For what stands in nobody's way; what does is looked at again soon."""

_FAULTY_SECONDS = 60.0
_ENFORCED = "pod-security.kubernetes.io/enforce"


class Environments:
    """`changed` is called with each LLMService whose environment is known now, or another than before."""

    def __init__(
        self,
        client: Client,
        namespaces: tuple[str, ...],
        changed: Callable[[Key], None],
        lengths: RequestLengths,
    ) -> None:
        self._client, self._is_confined, self._lengths = client, bool(namespaces), lengths
        self._claims: Lookups[ClaimFacts] = Lookups(changed)
        self._levels: Lookups[str] = Lookups(changed)

    def of(self, service: LLMService) -> Environment | None:
        """What is known; None while something of it is read for the first time. Never waits."""
        claim, level = self._claim(service), self._level(service)
        if level is None or (claim is None and cache_claim_name(service) is not None):
            return None
        return Environment(claim, level or None, self._lengths.of(_key(service)))

    async def aclose(self) -> None:
        """End what is being read."""
        await self._claims.close()
        await self._levels.close()

    def _claim(self, service: LLMService) -> ClaimFacts | None:
        name, namespace = cache_claim_name(service), service.metadata.namespace
        if name is None or (ours := claim_facts(service)) is not None:
            return ours if name is not None else None
        return self._claims.get(_key(service), (namespace, name), lambda: self._read_claim(namespace, name))

    def _level(self, service: LLMService) -> str | None:
        """Empty where it does not matter, or cannot be known: namespaces belong to the cluster."""
        cache, namespace = service.spec.cache, service.metadata.namespace
        if cache is None or cache.local is None or cache.local.host_path is None or self._is_confined:
            return ""
        return self._levels.get(_key(service), namespace, lambda: self._read_level(namespace))

    async def _read_claim(self, namespace: str, name: str) -> tuple[ClaimFacts, float]:
        try:
            found = await self._client.get(CLAIMS, namespace, name)
            if found is None:
                return ClaimFacts(name, exists=False), AGAIN_SECONDS
            modes = tuple(found["spec"].get("accessModes") or ())
        except (ApiError, UnreachableError) as error:
            logger.warning("claim %s/%s cannot be read, and is taken to be there: %s", namespace, name, error)
            return ClaimFacts(name), _FAULTY_SECONDS
        except Exception:
            logger.exception("reading claim %s/%s failed, and it is taken to be there", namespace, name)
            return ClaimFacts(name), _FAULTY_SECONDS
        facts = ClaimFacts(name, modes, made=found["metadata"]["creationTimestamp"])
        return facts, AGAIN_SECONDS if ONE_POD in modes else _FRESH_SECONDS

    async def _read_level(self, namespace: str) -> tuple[str, float]:
        try:
            found = await self._client.get_metadata(NAMESPACES, namespace)
            level = str((found["metadata"].get("labels") or {}).get(_ENFORCED, ""))
        except (ApiError, UnreachableError) as error:
            logger.warning("namespace %s cannot be read, and is taken to allow what pods ask for: %s", namespace, error)
            return "", _FAULTY_SECONDS
        except Exception:
            logger.exception("reading namespace %s failed, and it is taken to allow what pods ask for", namespace)
            return "", _FAULTY_SECONDS
        return level, AGAIN_SECONDS if level else _FRESH_SECONDS


def _key(service: LLMService) -> Key:
    return service.metadata.namespace, service.metadata.name
