"""The conditions beside Ready that tell of one part of a service each: absent where a service has no such part."""

from __future__ import annotations

from collections.abc import Callable

from quire_operator.api import LLMService
from quire_operator.reconcile.autoscaling import judge_autoscaling
from quire_operator.reconcile.caching import judge_cache
from quire_operator.reconcile.conditions import Verdict
from quire_operator.reconcile.monitoring import judge_monitoring
from quire_operator.reconcile.observation import Observation

Aspect = Callable[[LLMService, Observation], Verdict | None]
"""Judges one part; None where it does not apply."""

_ASPECTS: tuple[Aspect, ...] = (judge_cache, judge_autoscaling, judge_monitoring)


def aspects(service: LLMService, observation: Observation) -> list[Verdict]:
    """What holds of each part. A service that serves is Ready all the same."""
    verdicts = (judge(service, observation) for judge in _ASPECTS)
    return [verdict for verdict in verdicts if verdict is not None]
