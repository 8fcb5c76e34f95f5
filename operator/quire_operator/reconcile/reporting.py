"""Statuses and Events, as they are written."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Protocol

from quire_operator.api import LLMService, Status
from quire_operator.builders.identity import FIELD_MANAGER
from quire_operator.kubeapi.client import Client, Object
from quire_operator.kubeapi.errors import ApiError, UnreachableError
from quire_operator.kubeapi.resources import EVENTS, LLMSERVICES
from quire_operator.reconcile.events import transition_events

logger = logging.getLogger(__name__)


class Services(Protocol):
    """The LLMServices as last seen."""

    def learn(self, item: Object) -> bool:
        """Take in a state that the watch has not brought yet; True when it was news."""


class Reporter:
    """Writes what was found out."""

    def __init__(self, client: Client, services: Services) -> None:
        self._client, self._services = client, services

    async def write(self, service: LLMService, status: Status, now: str, also: Iterable[Object] = ()) -> None:
        """The status, an Event for each of its transitions, and `also` these. Raises ApiError and UnreachableError."""
        metadata = service.metadata
        manifest = {
            "apiVersion": LLMSERVICES.api_version,
            "kind": LLMSERVICES.kind,
            # with the uid, a status cannot land on a successor of the same name
            "metadata": {"name": metadata.name, "namespace": metadata.namespace, "uid": metadata.uid},
            "status": status.model_dump(by_alias=True, exclude_none=True, exclude_defaults=False),
        }
        answer = await self._client.apply(LLMSERVICES, manifest, FIELD_MANAGER, force=True, subresource="status")
        self._services.learn(answer)
        for event in (*transition_events(service, service.status.conditions, status.conditions, now), *also):
            await self.post(event)

    async def post(self, event: Object) -> None:
        """One Event. What keeps it from being written is logged, and otherwise of no consequence."""
        logger.info("%s: %s", event["reason"], event["message"])
        try:
            await self._client.create(EVENTS, event)
        except (ApiError, UnreachableError) as error:
            if isinstance(error, ApiError) and error.namespace_is_going:
                return
            logger.warning("an Event was lost: %s", error)  # the condition says the same
