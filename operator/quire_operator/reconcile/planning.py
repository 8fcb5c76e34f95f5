"""What the plan means for one LLMService: whether it is refused, and what its status says of the model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from quire_operator.api import LLMService, PlanStatus, Status
from quire_operator.builders.cached_model import model_name
from quire_operator.builders.circumstances import Circumstances
from quire_operator.builders.pod import build_group_templates, build_pod_template
from quire_operator.kubeapi.client import Object
from quire_operator.plan.acceptance import Refusal, objection_of
from quire_operator.reconcile.faults import is_ready, template_hash


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A plan, and what was learned of the model on the way."""

    plan: PlanStatus | None = None
    commit: str | None = None
    max_model_len: int | None = None
    quantization: str | None = None
    parameters: int | None = None
    is_from_status: bool = False
    """What was reported before a restart, until it is known anew."""

    again_after: float | None = None
    """Seconds after which what kept it from being planned may have passed."""

    @staticmethod
    def of_status(status: Status) -> Planned:
        """As it was last reported."""
        model = status.model
        return Planned(
            plan=status.plan,
            commit=model.revision if model else None,
            max_model_len=model.max_model_len if model else None,
            quantization=model.quantization if model else None,
            parameters=model.parameters if model else None,
            is_from_status=True,
        )

    @staticmethod
    def while_suspended(service: LLMService) -> Planned:
        """What was last reported of the spec's model, since none is read for pods that are not to be.

        The plan of a spec that was refused is left out: it is made anew when the service is to serve.
        """
        status = service.status
        if status.model is not None and status.model.source not in (None, model_name(service)):
            return Planned()
        known = Planned.of_status(status)
        return replace(known, plan=None) if _was_refused(status) else known


def was_accepted(service: LLMService) -> bool:
    """Whether this very spec was acted on already."""
    return any(
        condition.type == "Accepted"
        and condition.status == "True"
        and condition.observed_generation == service.metadata.generation
        for condition in service.status.conditions
    )


def refusal_by_plan(service: LLMService, plan: PlanStatus | None) -> Refusal | None:
    """Why the model is not rolled out. A spec that was accepted stays so: what runs is no longer a matter of sums."""
    if service.spec.suspend or was_accepted(service):
        return None
    objection = objection_of(plan)
    if objection is None or service.spec.plan != "enforce":
        return None
    return Refusal(objection.reason, f"{objection.message}. If you know better, set spec.plan to warn")


def serves_already(service: LLMService, pods: Iterable[Object], circumstances: Circumstances) -> bool:
    """Whether pods of this very template serve: what changed is how many, and they are the proof that it fits."""
    if service.spec.parallelism.nodes == 1:
        template = build_pod_template(service, circumstances)
    else:
        template, _ = build_group_templates(service, circumstances)
    return any(is_ready(pod) and template_hash(pod) == template_hash(template) for pod in pods)


def is_warning(before: Status, after: Status, refusal: Refusal | None) -> bool:
    """Whether a model that a plan speaks against is tried all the same, as of now."""
    if objection_of(after.plan) is None or refusal is not None:
        return False
    return objection_of(before.plan) is None or _was_refused(before)


def _was_refused(status: Status) -> bool:
    return any(condition.type == "Accepted" and condition.status == "False" for condition in status.conditions)
