"""Facts of models, read in the background: asking never waits, and what is known is given at once."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass

from quire_engine.memory_plan.model_facts import ModelFacts
from quire_operator.kubeapi.reflector import Key
from quire_operator.plan.gpu_memory import Skipped
from quire_operator.run.lookups import Lookups

logger = logging.getLogger(__name__)

_FAULTY_SECONDS = 600.0


@dataclass(frozen=True)
class Reading:
    """What came of an attempt to read a model."""

    known: ModelFacts | Skipped
    fresh_seconds: float
    """For how long it need not be read again."""

    is_transient: bool = False
    """It says nothing about the model, so that what was learned before stays."""


Read = Callable[[], Awaitable[Reading]]


class ModelCache:
    """`changed` is called with each LLMService that asked, when there is something new."""

    def __init__(self, changed: Callable[[Key], None]) -> None:
        self._lookups: Lookups[ModelFacts | Skipped] = Lookups(changed)

    def get(
        self, asker: Key, model: Hashable, read: Read, instead: Skipped | None = None
    ) -> ModelFacts | Skipped | None:
        """What is known of `model`; None when it is being read for the first time, by `read`.

        What has grown old is given all the same, and read again. With `instead`, a model of which nothing is known is
        not read, and that is the answer.
        """
        if instead is not None and self._lookups.known(model) is None:
            return instead
        return self._lookups.get(asker, model, lambda: self._read(model, read))

    async def close(self) -> None:
        """End what is being read."""
        await self._lookups.close()

    async def _read(self, model: Hashable, read: Read) -> tuple[ModelFacts | Skipped, float]:
        try:
            reading = await read()
        except Exception:
            logger.exception("reading %s failed", model)
            return Skipped("UnknownModel", "the model could not be read: see the log"), _FAULTY_SECONDS
        before = self._lookups.known(model)
        if reading.is_transient and isinstance(before, ModelFacts):
            return before, reading.fresh_seconds
        return reading.known, reading.fresh_seconds
