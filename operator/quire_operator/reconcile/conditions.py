"""The conditions: Accepted, Available and Ready always; Reconciling and Stalled while they hold, and never both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from quire_operator.api import Condition, LLMService
from quire_operator.builders.stopped_rollout import RETRY, StoppedRollout
from quire_operator.builders.workload import workload_reference
from quire_operator.plan.acceptance import Refusal
from quire_operator.reconcile.children import Problem
from quire_operator.reconcile.faults import Fault
from quire_operator.reconcile.replicas import Replicas

_SCALING_MAY_COME = {"ScalerPending", "MetricsUnavailable"}
"""Reasons for not scaling that may pass by themselves."""


@dataclass(frozen=True)
class Verdict:
    """One condition, before it is put beside the one that was."""

    type: str
    holds: bool
    reason: str
    message: str


def verdicts(
    service: LLMService,
    replicas: Replicas,
    *,
    refusal: Refusal | None = None,
    problems: Sequence[Problem] = (),
    waiting_for: Sequence[tuple[str, str]] = (),
    fault: Fault | None = None,
    leaving: int = 0,
    stopped: StoppedRollout | None = None,
    held: Fault | None = None,
    scaling: Verdict | None = None,
) -> list[Verdict]:
    """What holds now. `leaving` counts the pods that are still there of a suspended service.

    `held` is why pods of the present spec are not started yet; those of an earlier one may serve.
    `scaling` is what the condition Autoscaling says.
    """
    accepted = Verdict("Accepted", True, "Valid", "the spec can be served")
    available = _available(replicas)
    if refusal is not None:
        accepted = Verdict("Accepted", False, refusal.reason, refusal.message)
        return [_not_ready(refusal.reason, refusal.message), accepted, available, _stalled(refusal)]
    if problems:
        first = problems[0]
        return [_not_ready(first.reason, first.message), accepted, available, _stalled(first)]
    if service.spec.suspend:
        return _suspended(leaving)
    if waiting_for:
        leftovers = ", ".join(f"{kind} {name}" for kind, name in waiting_for)
        text = f"waiting until {leftovers} is gone, which is no longer wanted"
        return [_not_ready("Waiting", text), accepted, available, Verdict("Reconciling", True, "Waiting", text)]
    if held is not None:
        return _faulty(accepted, replicas, held)
    if stopped is not None:
        text = _stopped_text(service, replicas, stopped)
        return [
            _not_ready("RolloutStopped", text),
            accepted,
            available,
            Verdict("Stalled", True, "RolloutStopped", text),
        ]
    if replicas.rolled_out:
        if replicas.wanted == 0:
            return _at_zero(service, accepted, scaling)
        text = f"{replicas.ready} of {replicas.wanted} replicas serve"
        return [Verdict("Ready", True, "Serving", text), accepted, available]
    if fault is not None:
        return _faulty(accepted, replicas, fault)
    reason, text = _progress(replicas)
    return [_not_ready(reason, text), accepted, available, Verdict("Reconciling", True, reason, text)]


def planning_verdicts(service: LLMService, replicas: Replicas) -> list[Verdict]:
    """What holds while the plan is awaited. Whether the spec is accepted is not known, so nothing is said of that."""
    text = (
        f"{service.spec.model.source} is being read for its plan, and no pod of this spec starts before: this takes "
        "half a minute at most. spec.plan: off does without"
    )
    return [_not_ready("Planning", text), _available(replicas), Verdict("Reconciling", True, "Planning", text)]


def failing_verdicts(replicas: Replicas, error: str) -> list[Verdict]:
    """What holds while the API server does not do what the spec takes, and is asked again and again."""
    text = (
        f"{error}. It is tried again, with longer and longer pauses: should a webhook not answer, see that what serves "
        "it runs; else the API server's log and the operator's have more"
    )
    return [
        _not_ready("ReconcileFailed", text),
        _available(replicas),
        Verdict("Reconciling", True, "ReconcileFailed", text),
    ]


def _at_zero(service: LLMService, accepted: Verdict, scaling: Verdict | None) -> list[Verdict]:
    text = "no replica is wanted: " + ("a trigger wakes it" if service.spec.autoscaling else "scale up to serve")
    zero = Verdict("Available", False, "ScaledToZero", text)
    if service.spec.autoscaling is None or scaling is None or scaling.holds:
        return [Verdict("Ready", True, "ScaledToZero", text), accepted, zero]
    target = workload_reference(service)
    way_out = f"`kubectl scale {target['kind'].lower()}/{target['name']} -n {service.metadata.namespace} --replicas=1`"
    text = f"there is no replica, and nothing can be counted on to wake one: {scaling.message}. {way_out} does by hand"
    found = [_not_ready(scaling.reason, text), accepted, Verdict("Available", False, scaling.reason, text)]
    if scaling.reason in _SCALING_MAY_COME:
        found.append(Verdict("Reconciling", True, scaling.reason, text))
    elif scaling.reason != "Paused":  # which is somebody's wish, as suspending is
        found.append(Verdict("Stalled", True, scaling.reason, text))
    return found


def _faulty(accepted: Verdict, replicas: Replicas, fault: Fault) -> list[Verdict]:
    verdict = Verdict("Stalled" if fault.needs_action else "Reconciling", True, fault.reason, fault.message)
    return [_not_ready(fault.reason, fault.message), accepted, _available(replicas, fault), verdict]


def _stopped_text(service: LLMService, replicas: Replicas, stopped: StoppedRollout) -> str:
    retry = f"`kubectl annotate llmservice/{service.metadata.name} -n {service.metadata.namespace} --overwrite {RETRY}="
    return (
        f"the rollout was stopped: {stopped.message}. {replicas.ready} of {replicas.wanted} replicas serve as before. "
        f'Correct the spec, or have the same tried again with {retry}"$(date)"`'
    )


def _suspended(leaving: int) -> list[Verdict]:
    text = "spec.suspend is true: set it to false to serve"
    accepted = Verdict("Accepted", True, "Valid", "what is suspended starts nothing: the rest is judged when it is to")
    result = [_not_ready("Suspended", text), accepted, Verdict("Available", False, "Suspended", text)]
    if leaving:
        result.append(Verdict("Reconciling", True, "Suspending", f"{leaving} pods are finishing their requests"))
    return result


def _available(replicas: Replicas, fault: Fault | None = None) -> Verdict:
    if replicas.available > 0:
        return Verdict("Available", True, "Serving", f"{replicas.available} replicas serve")
    if fault is None and replicas.recreating:
        reason, message = _progress(replicas)
        return Verdict("Available", False, reason, message)
    reason = fault.reason if fault is not None else "NoReplicaReady"
    message = fault.message if fault is not None else "no replica serves yet"
    return Verdict("Available", False, reason, message)


def _progress(replicas: Replicas) -> tuple[str, str]:
    if replicas.wanted == 0:
        left = f"{replicas.existing} pods are still there" if replicas.existing else "that has yet to be taken up"
        return "Scaling", f"no replica is wanted: {left}"
    counts = f"{replicas.ready} of {replicas.wanted} replicas serve, {replicas.updated} are of the newest revision"
    if replicas.recreating:
        return "Recreating", f"{counts}: strategy Recreate stops all old pods before a new one starts to load"
    if replicas.available == 0:
        return "Starting", f"{counts}: pods are being scheduled, pulled or loading the model"
    if not replicas.is_current or replicas.older:
        return "RollingOut", f"{counts}: older pods serve until newer ones do"
    return "Scaling", counts


def _not_ready(reason: str, message: str) -> Verdict:
    return Verdict("Ready", False, reason, message)


def _stalled(cause: Refusal | Problem) -> Verdict:
    return Verdict("Stalled", True, cause.reason, cause.message)


def with_times(
    verdicts: Iterable[Verdict], before: Iterable[Condition], generation: int | None, now: str
) -> list[Condition]:
    """Conditions as they are stored; the time is that of the last change of status, not of words."""
    old = {condition.type: condition for condition in before}
    result = []
    for verdict in verdicts:
        status: Literal["True", "False"] = "True" if verdict.holds else "False"
        previous = old.get(verdict.type)
        result.append(
            Condition(
                type=verdict.type,
                status=status,
                reason=verdict.reason,
                message=verdict.message,
                observed_generation=generation,
                last_transition_time=previous.last_transition_time if previous and previous.status == status else now,
            )
        )
    return result
