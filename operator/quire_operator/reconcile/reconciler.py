"""The one reconcile: whatever happened, it looks at what is there and does what is missing."""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from quire_operator.api import InvalidLLMServiceError, LLMService, parse_llmservice
from quire_operator.builders.circumstances import Capabilities, Circumstances
from quire_operator.builders.desired import desired_objects
from quire_operator.builders.identity import SERVICE_LABEL
from quire_operator.builders.scaling import obstacle
from quire_operator.kubeapi.client import Client, Object
from quire_operator.kubeapi.errors import ApiError, UnreachableError
from quire_operator.kubeapi.login import own_namespace
from quire_operator.kubeapi.reflector import Key
from quire_operator.kubeapi.resources import LLMSERVICES, REPLICA_SETS
from quire_operator.plan.acceptance import Refusal, refusal_of
from quire_operator.reconcile.cache_state import CacheState
from quire_operator.reconcile.caching import HELD_BACK, Caching, Downloads
from quire_operator.reconcile.changes import ChildKey, changes, is_scaler
from quire_operator.reconcile.children import Outcome, carry_out
from quire_operator.reconcile.environment import AGAIN_SECONDS, Environment, refusal_by_environment
from quire_operator.reconcile.events import (
    advice_events,
    download_event,
    hand_edit_event,
    loss_event,
    plan_events,
)
from quire_operator.reconcile.hand_edits import HandEdits
from quire_operator.reconcile.needed import still_needed
from quire_operator.reconcile.observation import Observation, groups_late_in
from quire_operator.reconcile.planning import Planned, is_warning, refusal_by_plan, serves_already, was_accepted
from quire_operator.reconcile.prefetch_jobs import losses
from quire_operator.reconcile.reporting import Reporter
from quire_operator.reconcile.rollouts import failed_rollout, still_stopped, stop_rollout
from quire_operator.reconcile.scalers import leaving_scalers, stuck_scaler
from quire_operator.reconcile.status import failing_status, planning_status, status_of
from quire_operator.reconcile.workloads import missing_api, predecessor
from quire_operator.settings import Settings

logger = logging.getLogger(__name__)

_WAIT_SECONDS = 2.0
_PROBLEM_SECONDS = 30.0
_STUCK_SECONDS = 60.0
_ASIDE_SECONDS = 10.0
"""What a scaler replaces may not have been forgotten everywhere yet, and a webhook be away for a moment."""

_LONGEST_ASIDE_SECONDS = 300.0
_FAILING_SECONDS = 5.0


class Services(Protocol):
    """The LLMServices as last seen."""

    def get(self, key: Key) -> Object | None:
        """The whole object, or None when there is none."""

    def objects(self) -> list[Object]:
        """All of them."""

    def learn(self, item: Object) -> bool:
        """Take in a state that the watch has not brought yet; True when it was news."""

    def forget(self, key: Key) -> None:
        """It is gone."""


class Surroundings(Protocol):
    """The children and pods as last seen."""

    def children(self, key: Key) -> Mapping[ChildKey, Object]:
        """Children of one LLMService."""

    def pods(self, key: Key) -> list[Object]:
        """Its pods."""

    def learn(self, kind: str, item: Object) -> None:
        """Take in the answer to an apply."""

    @property
    def capabilities(self) -> Capabilities:
        """Which optional APIs the cluster serves."""


class Plans(Protocol):
    """The plans of models and GPUs."""

    def of(self, service: LLMService) -> Planned | None:
        """The plan; None while what it needs is being read, after which the service is reconciled again."""


class Environments(Protocol):
    """What services find in their namespaces."""

    def of(self, service: LLMService) -> Environment | None:
        """What is known; None while it is read, after which the service is reconciled again."""


@dataclass(frozen=True)
class Result:
    """How a reconcile ended."""

    name: str
    """unchanged, changed, waiting, refused or gone."""

    again_after: float | None = None
    """Seconds after which to look again though nothing was heard."""


class Reconciler:
    """Reconciles one LLMService at a time; holds nothing that could not be found out again."""

    def __init__(
        self,
        client: Client,
        settings: Settings,
        services: Services,
        surroundings: Surroundings,
        plans: Plans,
        downloads: Downloads,
        environments: Environments,
    ) -> None:
        self._client, self._settings = client, settings
        self._services, self._surroundings, self._plans = services, surroundings, plans
        self._failing_since: dict[Key, float] = {}
        self._refused_since: dict[Key, float] = {}
        self._settled: dict[Key, dict[ChildKey, tuple[str, str]]] = {}
        self._environments = environments
        self._hand_edits = HandEdits()
        self._reporter = Reporter(client, services)
        self._caching = Caching(client, downloads, services, surroundings)

    async def reconcile(self, key: Key) -> Result:
        """Bring the cluster closer to the spec and the status closer to the cluster.

        Raises ApiError and UnreachableError when another attempt may help.
        """
        try:
            result = await self._reconcile(key)
        except ApiError as error:
            await self._report_failing(key, error)
            raise
        self._failing_since.pop(key, None)
        return result

    async def _reconcile(self, key: Key) -> Result:
        manifest = self._services.get(key)
        if manifest is None or manifest["metadata"].get("deletionTimestamp"):
            return self._gone(key)
        try:
            service, refusal = parse_llmservice(manifest), None
        except InvalidLLMServiceError as error:
            return await self._report_unreadable(key, manifest, error)
        capabilities = self._surroundings.capabilities
        # what is suspended starts nothing that could be refused, and frees what pods of an earlier spec hold
        is_suspended = service.spec.suspend
        refusal = None if is_suspended else refusal_of(service.spec) or missing_api(service.spec, capabilities)
        planned, environment, unfit = Planned(), Environment(), None
        if refusal is None:
            known, found = self._planned(service), self._environments.of(service)
            if known is None or (found is None and not (is_suspended or was_accepted(service))):
                return await self._report_planning(key, service)
            planned, environment = known, found or environment
            unfit = refusal_by_environment(service, environment, self._observe(key, ()).replicas(service).wanted)
            unplanned = refusal_by_plan(service, known.plan)
            if unplanned is not None and self._serves_already(service, key, planned, environment):
                unplanned = None
            refusal = unplanned or unfit
        outcome, circumstances, cache, stuck = Outcome(), None, None, None
        if refusal is None:
            seen = replace(self._observe(key, ()), environment=environment)
            cache = self._caching.look(service, planned, seen)
            held = HELD_BACK if cache is not None and cache.is_held else ()
            circumstances = await self._circumstances(service, key, cache)
            desired = [child for child in desired_objects(service, circumstances) if child["kind"] not in held]
            children, pods = self._surroundings.children(key), self._surroundings.pods(key)
            needed = still_needed(service, children, pods)
            todo = changes(service, desired, children, self._settled.get(key, {}), held, needed)
            edit = self._hand_edits.find(key, desired, todo)
            jobs = self._caching.todo(service, planned, circumstances, seen)
            if todo or jobs:
                # only what exists may be acted for: its deletion may not have been heard of yet
                fresh = await self._client.get(LLMSERVICES, *key)
                if fresh is None or fresh["metadata"]["uid"] != service.metadata.uid:
                    self._services.forget(key)
                    if fresh is not None:
                        self._services.learn(fresh)
                        return Result("waiting", 0.0)
                    return self._gone(key)
                self._services.learn(fresh)
                if fresh["metadata"]["generation"] != service.metadata.generation:
                    return Result("waiting", 0.0)
                if fresh["metadata"].get("deletionTimestamp"):
                    return self._gone(key)
                service = parse_llmservice(fresh)
                outcome = await carry_out(self._client, service, todo, circumstances)
                self._remember(key, outcome)
                observation = replace(self._observe(key, outcome.deleted), environment=environment)
                cache = await self._caching.carry_out(jobs, service, planned, observation)
                for loss in losses(jobs):
                    await self._reporter.post(loss_event(service, loss, _now()))
            if edit is not None:
                await self._reporter.post(hand_edit_event(service, edit, _now()))
            stuck = stuck_scaler(service, self._surroundings.children(key), _now())
            outcome.waiting_for += leaving_scalers(service, self._surroundings.children(key))
            if stuck is not None:
                outcome.waiting_for = [child for child in outcome.waiting_for if not is_scaler(child[0])]
        observation = replace(
            self._observe(key, outcome.deleted), aside=outcome.aside, cache=cache, environment=environment
        )
        if circumstances is not None:
            blocked = stuck or obstacle(service, circumstances)
            observation = replace(observation, stopped=circumstances.stopped, scaling_obstacle=blocked)
        wrote = await self._report(service, observation, outcome, refusal, planned)
        soonest = _soonest(
            planned.again_after,
            cache.retry_after if cache is not None else None,
            AGAIN_SECONDS if unfit is not None else None,
            _STUCK_SECONDS if stuck is not None else None,
            (groups_late_in(service, observation) or None) if refusal is None else None,
        )
        return _result(refusal, outcome, wrote, soonest, self._refused_for(key, outcome))

    async def _circumstances(self, service: LLMService, key: Key, cache: CacheState | None) -> Circumstances:
        """What children depend on; a rollout that fails is found out here, and what to go back to."""
        observation = self._observe(key, ())
        circumstances = self._known_circumstances(service, observation, cache)
        if cache is not None and cache.is_held:
            return circumstances  # the workload stays as it is
        stopped = still_stopped(service, observation, circumstances)
        fault = failed_rollout(service, observation, circumstances) if stopped is None else None
        if fault is not None:
            found = await self._client.list(REPLICA_SETS, key[0], f"{SERVICE_LABEL}={key[1]}")
            stopped = stop_rollout(service, fault, observation, found["items"], circumstances)
        leaving, before = leaving_scalers(service, observation.children), predecessor(service, observation.children)
        return replace(
            circumstances,
            stopped=stopped,
            scalers_leaving=bool(leaving),
            replaced_replicas=before["spec"].get("replicas", 1) if before is not None else None,
        )

    def _known_circumstances(
        self, service: LLMService, observation: Observation, cache: CacheState | None
    ) -> Circumstances:
        """What a template depends on."""
        return Circumstances(
            self._settings,
            self._surroundings.capabilities,
            own_namespace(self._client.info),
            cached_revision=cache.cached_revision if cache is not None else None,
            cached_adapters=cache.cached_adapters if cache is not None else {},
            claim_size=observation.claim_size(service),
        )

    def _serves_already(self, service: LLMService, key: Key, planned: Planned, environment: Environment) -> bool:
        observation = replace(self._observe(key, ()), environment=environment)
        cache = self._caching.look(service, planned, observation)
        return serves_already(service, observation.pods, self._known_circumstances(service, observation, cache))

    def _planned(self, service: LLMService) -> Planned | None:
        """The plan; None when it has to be waited for."""
        if service.spec.plan == "off":
            return Planned()
        if service.spec.suspend:
            return Planned.while_suspended(service)
        known = self._plans.of(service)
        if known is None and was_accepted(service):
            return Planned.of_status(service.status)  # after a restart: no hub is waited for by what is served
        return known

    def _observe(self, key: Key, deleted: Iterable[ChildKey]) -> Observation:
        gone = set(deleted)
        children = {child: live for child, live in self._surroundings.children(key).items() if child not in gone}
        pods, capabilities = self._surroundings.pods(key), self._surroundings.capabilities
        return Observation(children, pods, capabilities, now=time.time())

    def _remember(self, key: Key, outcome: Outcome) -> None:
        for (kind, _), item in outcome.applied.items():
            self._surroundings.learn(kind, item)
        if outcome.settled:
            self._settled.setdefault(key, {}).update(outcome.settled)

    def _refused_for(self, key: Key, outcome: Outcome) -> float:
        """Seconds for which the scaler has been refused."""
        now = time.monotonic()
        if not outcome.aside:
            self._refused_since.pop(key, None)
        return now - self._refused_since.setdefault(key, now) if outcome.aside else 0.0

    def _gone(self, key: Key) -> Result:
        self._settled.pop(key, None)
        self._refused_since.pop(key, None)
        self._failing_since.pop(key, None)
        self._hand_edits.forget(key)
        return Result("gone")

    async def _report(
        self,
        service: LLMService,
        observation: Observation,
        outcome: Outcome,
        refusal: Refusal | None,
        planned: Planned,
    ) -> bool:
        now = _now()
        status = status_of(service, observation, outcome, refusal, self._settings, now, planned)
        if status == service.status:
            return False
        events = plan_events(service, status, now) if is_warning(service.status, status, refusal) else []
        events += advice_events(service, service.status, status, now)
        downloading = download_event(service, status, now)
        if downloading is not None:
            events.append(downloading)
        await self._reporter.write(service, status, now, events)
        return True

    async def _report_planning(self, key: Key, service: LLMService) -> Result:
        """Say once that the spec is not acted on yet: without conditions, tools would take it for done."""
        if service.status.observed_generation != service.metadata.generation:
            now = _now()
            await self._reporter.write(service, planning_status(service, self._observe(key, ()), now), now)
        return Result("waiting")

    async def _report_failing(self, key: Key, error: ApiError) -> None:
        """Say what the API server answers, once it has done so for a while: most of it passes at the next attempt."""
        since = self._failing_since.setdefault(key, time.monotonic())
        manifest = self._services.get(key)
        if manifest is None or error.namespace_is_going or time.monotonic() - since < _FAILING_SECONDS:
            return
        try:
            service, now = parse_llmservice(manifest), _now()
            status = failing_status(service, self._observe(key, ()), str(error), now)
            if status != service.status:
                await self._reporter.write(service, status, now)
        except (InvalidLLMServiceError, ApiError, UnreachableError) as second:
            logger.warning("the status cannot be written: %s", second)

    async def _report_unreadable(self, key: Key, manifest: Object, error: InvalidLLMServiceError) -> Result:
        """The API server let an object pass that we cannot read: its CRD is older or newer than this operator."""
        metadata = manifest["metadata"]
        stand_in = parse_llmservice({"metadata": metadata, "spec": _MINIMAL, "status": manifest.get("status")})
        refusal = Refusal("Invalid", f"{error}. Correct it, and install the CRD of this operator's version")
        wrote = await self._report(stand_in, self._observe(key, ()), Outcome(), refusal, Planned())
        return _result(refusal, Outcome(), wrote, None)


_MINIMAL = {"model": {"source": "image:///unknown"}}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _soonest(*seconds: float | None) -> float | None:
    return min((number for number in seconds if number is not None), default=None)


def _result(
    refusal: Refusal | None, outcome: Outcome, wrote: bool, again_after: float | None, refused_for: float = 0.0
) -> Result:
    if refusal is not None:
        return Result("refused", again_after)
    if outcome.problems:
        return Result("refused", _PROBLEM_SECONDS)
    if outcome.waiting_for:
        return Result("waiting", _WAIT_SECONDS)
    if outcome.aside:
        return Result("refused", min(max(_ASIDE_SECONDS, refused_for), _LONGEST_ASIDE_SECONDS))
    return Result("changed" if wrote or outcome.applied or outcome.deleted else "unchanged", again_after)
