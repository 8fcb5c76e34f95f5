"""Fields that nothing would come of are refused, and never ignored: not built yet, or not in this engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from quire_operator.api import PlanStatus, Spec
from quire_operator.plan.engine_fields import LACKS


@dataclass(frozen=True)
class Refusal:
    """Why an LLMService is not acted on."""

    reason: str
    message: str


_LATER_IN_QUIRE: tuple[tuple[str, Callable[[Spec], bool], str], ...] = (
    ("spec.model.kvCacheDtype", lambda spec: spec.model.kv_cache_dtype != "auto", "write auto"),
    ("spec.engine.speculative", lambda spec: spec.engine.speculative is not None, "leave it out"),
)
"""Field, whether it asks for something that Quire's own engine cannot do yet, and what to write instead."""


def refusal_of(spec: Spec) -> Refusal | None:
    """Why `spec` cannot be acted on, naming every field in the way; None when it can."""
    engine = spec.engine.type
    later = _LATER_IN_QUIRE if engine == "quire" else ()
    unsupported = [f"{field} ({instead})" for field, asks, instead in later if asks(spec)]
    if unsupported:
        return Refusal("NotSupportedYet", f"this version does not support {', '.join(unsupported)}")
    lacking = [f"{lack.field} ({lack.instead})" for lack in LACKS[engine] if lack.asks(spec)]
    if lacking:
        return Refusal("NotSupportedByEngine", f"spec.engine.type {engine} does not support {', '.join(lacking)}")
    return None


def objection_of(plan: PlanStatus | None) -> Refusal | None:
    """Why a model should not be served that is planned so; None where nothing is known against it."""
    match plan:
        case PlanStatus(verdict="DoesNotFit"):
            return Refusal("DoesNotFit", plan.message)
        case PlanStatus(verdict="UnsupportedModel"):
            return Refusal("UnsupportedModel", plan.message)
    return None
