"""Which GPUs the nodes report, read now and then in the background."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import Callable, Mapping, Sequence

from quire_operator.kubeapi.client import Client
from quire_operator.kubeapi.errors import ApiError, UnreachableError
from quire_operator.kubeapi.reflector import Key
from quire_operator.kubeapi.resources import NODES
from quire_operator.plan.gpu_memory import MEMORY_LABEL

logger = logging.getLogger(__name__)

_FRESH_SECONDS = 600.0


class NodeGPUs:
    """Labels of the nodes that report a GPU's memory. Without the right to list nodes there are none."""

    def __init__(self, client: Client, changed: Callable[[Key], None]) -> None:
        self._client, self._changed = client, changed
        self._labels: Sequence[Mapping[str, str]] | None = None
        self._expires = 0.0
        self._waiting: set[Key] = set()
        self._task: asyncio.Task[None] | None = None

    def labels(self, asker: Key) -> Sequence[Mapping[str, str]] | None:
        """Labels, a node each; None while they are read for the first time."""
        if time.monotonic() >= self._expires:
            self._waiting.add(asker)
            # without the asker's context: what is logged is about no one LLMService
            self._task = self._task or asyncio.create_task(self._read(), context=contextvars.Context())
        return self._labels

    async def close(self) -> None:
        """End what is being read."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _read(self) -> None:
        before = self._labels
        try:
            answer = await self._client.list_metadata(NODES, MEMORY_LABEL)
            self._labels = [item["metadata"].get("labels") or {} for item in answer.get("items") or []]
        except (ApiError, UnreachableError) as error:
            logger.warning("nodes cannot be listed, so plans know GPUs by their product alone: %s", error)
            self._labels = before or ()
        except Exception:
            logger.exception("reading nodes failed, so plans know GPUs by their product alone")
            self._labels = before or ()
        finally:
            self._expires = time.monotonic() + _FRESH_SECONDS
            self._task = None
            askers, self._waiting = self._waiting, set()
            if self._labels != before:
                for asker in askers:
                    self._changed(asker)
