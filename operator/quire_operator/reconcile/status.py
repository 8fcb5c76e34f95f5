"""The status of an LLMService, put together from what was observed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from quire_operator.api import Advice, CacheStatus, LLMService, ModelStatus, PlanStatus, Status
from quire_operator.builders.cached_model import is_commit, model_name
from quire_operator.builders.claim import cache_claim_name
from quire_operator.builders.identity import selector_labels
from quire_operator.builders.service import service_url
from quire_operator.plan.acceptance import Refusal
from quire_operator.plan.advice import Lengths, advice_of
from quire_operator.reconcile.aspects import aspects
from quire_operator.reconcile.autoscaling import TYPE as AUTOSCALING
from quire_operator.reconcile.autoscaling import autoscaling_status
from quire_operator.reconcile.children import Outcome
from quire_operator.reconcile.conditions import Verdict, failing_verdicts, planning_verdicts, verdicts, with_times
from quire_operator.reconcile.held_gpus import held_gpus
from quire_operator.reconcile.observation import Observation, fault_of
from quire_operator.reconcile.planning import Planned
from quire_operator.reconcile.replicas import Replicas
from quire_operator.settings import Settings

NOT_PLANNED = Planned()


def status_of(
    service: LLMService,
    observation: Observation,
    outcome: Outcome,
    refusal: Refusal | None,
    settings: Settings,
    now: str,
    planned: Planned = NOT_PLANNED,
) -> Status:
    """What there is to say. A function of its arguments alone, and equal to the last one when nothing changed.

    Of a spec that is refused it gives the plan. All else is of what is there, and so of an earlier spec.
    """
    replicas = observation.replicas(service)
    is_served = refusal is None and not service.spec.suspend
    of_parts = aspects(service, observation) if is_served else []
    holds = verdicts(
        service,
        replicas,
        refusal=refusal,
        problems=outcome.problems,
        waiting_for=outcome.waiting_for,
        fault=fault_of(service, observation),
        leaving=len(observation.pods),
        stopped=observation.stopped,
        held=observation.cache.fault if observation.cache is not None and observation.cache.is_held else None,
        scaling=next((verdict for verdict in of_parts if verdict.type == AUTOSCALING), None),
    )
    holds += of_parts
    generation = service.metadata.generation
    wanted = 0 if service.spec.suspend and refusal is None else replicas.wanted
    return Status(
        observed_generation=generation,
        conditions=with_times(holds, service.status.conditions, generation, now),
        url=service_url(service, settings) if refusal is None else service.status.url,
        ready=f"{replicas.ready}/{wanted}",
        gpus=held_gpus(service, observation.pods),
        gpu_product=_gpu_product(service, planned.plan) if refusal is None else service.status.gpu_product,
        replicas=replicas.existing,
        ready_replicas=replicas.ready,
        updated_replicas=replicas.updated if observation.stopped is None else 0,
        selector=",".join(f"{key}={value}" for key, value in selector_labels(service).items()),
        autoscaling=autoscaling_status(service, observation) if refusal is None else service.status.autoscaling,
        cache=_cache(service, observation) if refusal is None else service.status.cache,
        model=_model(service, observation, planned) if refusal is None else service.status.model,
        plan=planned.plan,
        advice=_advice(service, observation, planned) if is_served else [],
    )


def planning_status(service: LLMService, observation: Observation, now: str) -> Status:
    """What there is to say before it is known whether the spec can be accepted."""
    replicas = observation.replicas(service)
    return _interim_status(service, replicas, planning_verdicts(service, replicas), now)


def failing_status(service: LLMService, observation: Observation, error: str, now: str) -> Status:
    """What there is to say while the API server answers with an error that may pass."""
    replicas = observation.replicas(service)
    return _interim_status(service, replicas, failing_verdicts(replicas, error), now)


def _interim_status(service: LLMService, replicas: Replicas, holds: Iterable[Verdict], now: str) -> Status:
    """A few verdicts; the rest is as it was last reported."""
    before, generation = service.status.conditions, service.metadata.generation
    fresh = with_times(holds, before, generation, now)
    superseded = {"Stalled", *(condition.type for condition in fresh)}
    conditions = [*fresh, *(condition for condition in before if condition.type not in superseded)]
    update = {
        "observed_generation": generation,
        "conditions": conditions,
        "ready": f"{replicas.ready}/{replicas.wanted}",
    }
    return service.status.model_copy(update=update)


def _model(service: LLMService, observation: Observation, planned: Planned) -> ModelStatus:
    return ModelStatus(
        name=service.served_name,
        source=model_name(service),
        revision=_known_commit(service, observation) or planned.commit,
        max_model_len=planned.max_model_len,
        quantization=planned.quantization,
        parameters=planned.parameters,
    )


def _advice(service: LLMService, observation: Observation, planned: Planned) -> list[Advice]:
    claim = observation.environment.claim
    if claim is not None:
        claim = replace(claim, size=observation.claim_size(service))
    lengths = Lengths(
        service.spec.model.max_model_len or planned.max_model_len, observation.environment.longest_request
    )
    return advice_of(service, planned.plan, observation.replicas(service).wanted, claim, lengths)


def _gpu_product(service: LLMService, plan: PlanStatus | None) -> str | None:
    if service.spec.gpus_per_pod == 0:
        return None
    return service.spec.resources.gpu.product or (plan.device if plan is not None else None)


def _known_commit(service: LLMService, observation: Observation) -> str | None:
    """The commit that the spec itself names, or that pods load from the claim."""
    revision = service.spec.model.revision
    if revision is not None and is_commit(revision):
        return revision
    return observation.cache.commit if observation.cache is not None else None


def _cache(service: LLMService, observation: Observation) -> CacheStatus | None:
    if observation.cache is not None:
        return observation.cache.status(service)
    claim = cache_claim_name(service)
    return CacheStatus(claim_name=claim) if claim is not None else None
