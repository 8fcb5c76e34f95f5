"""The plan of a service without a cluster: what `quire-operator plan` prints."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from quire_engine.memory_plan.model_facts import ModelFacts
from quire_operator.api import HubSource, LLMService, PlanStatus, parse_source
from quire_operator.plan.gpu_memory import KnownGPUs, Skipped, device_of
from quire_operator.plan.hub_source import hub_endpoint, repository_of
from quire_operator.plan.service_plan import cannot_be_planned, plan_of, skipped_plan
from quire_operator.settings import Settings


class InvalidCheckpointError(ValueError):
    """The directory holds no checkpoint that can be planned with."""


def plan_offline(
    service: LLMService, settings: Settings, directory: Path | None = None, memory_gib: int | None = None
) -> PlanStatus:
    """Plan with a checkpoint in `directory`, else with the hub's. `memory_gib` is that of GPUs the spec leaves open.

    Raises InvalidCheckpointError when the directory holds none.
    """
    spec = service.spec
    if memory_gib is not None and spec.resources.gpu.memory_gib is None:
        gpu = spec.resources.gpu.model_copy(update={"memory_gib": memory_gib})
        spec = spec.model_copy(update={"resources": spec.resources.model_copy(update={"gpu": gpu})})
    device = cannot_be_planned(spec) or device_of(spec, KnownGPUs(products=settings.products()))
    if isinstance(device, Skipped):
        return skipped_plan(device)
    facts = _in_directory(directory) if directory is not None else _on_hub(service, settings)
    return skipped_plan(facts) if isinstance(facts, Skipped) else plan_of(spec, facts, device)


def _in_directory(directory: Path) -> ModelFacts:
    try:
        return ModelFacts.of_directory(directory)
    except ValueError as error:
        raise InvalidCheckpointError(str(error)) from error


def _on_hub(service: LLMService, settings: Settings) -> ModelFacts | Skipped:
    # aiohttp takes a while to import, which the other commands need not wait for
    import aiohttp

    from quire_operator.sources.hub import HubError, HubModel, read_model

    if not isinstance(parse_source(service.spec.model.source), HubSource):
        return Skipped("NotPlanned", "the model is on no hub: name a copy of the checkpoint with --config DIR")
    endpoint = hub_endpoint(service, settings)
    if isinstance(endpoint, Skipped):
        return endpoint
    model = HubModel(endpoint, repository_of(service), service.spec.model.revision or "main")

    async def read() -> ModelFacts:
        async with aiohttp.ClientSession(trust_env=True) as session:
            return await read_model(session, model, os.environ.get("HF_TOKEN"))

    try:
        return asyncio.run(read())
    except HubError as error:
        return Skipped(error.reason, str(error))
