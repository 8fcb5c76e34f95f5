"""The operator's main loop: wait for the Lease, list everything, reconcile whatever changes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from quire_operator import __version__, metrics
from quire_operator.kubeapi.client import Client
from quire_operator.kubeapi.errors import ApiError, UnreachableError
from quire_operator.kubeapi.login import own_namespace
from quire_operator.kubeapi.reflector import Key
from quire_operator.reconcile.reconciler import Reconciler
from quire_operator.run import logs
from quire_operator.run.discovery import Discovery
from quire_operator.run.downloads import Downloads
from quire_operator.run.environments import Environments
from quire_operator.run.health import HealthServer
from quire_operator.run.leader import Leader
from quire_operator.run.plans import Plans
from quire_operator.run.queue import WorkQueue
from quire_operator.run.request_lengths import RequestLengths
from quire_operator.run.service_metrics import count_services
from quire_operator.run.services import ServiceStore
from quire_operator.run.surroundings import Surroundings
from quire_operator.run.watch import ServiceWatch
from quire_operator.settings import Settings

logger = logging.getLogger(__name__)

_STALE_SECONDS = 300.0
"""How long a watch may be silent or a reconcile take until the process counts as stuck."""


async def run_operator(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT. Raises when a task that must not end does, so that the pod is restarted."""
    stop = asyncio.Event()
    _stop_on_signals(stop)
    async with Client() as client:
        await Operator(client, settings, stop).run()


def _stop_on_signals(stop: asyncio.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)


class Operator:
    """One replica."""

    def __init__(self, client: Client, settings: Settings, stop: asyncio.Event) -> None:
        self._client, self._settings, self._stop = client, settings, stop
        self._queue = WorkQueue()
        self._store = ServiceStore()
        self._watch = ServiceWatch(client, settings.namespaces, self._store, self._queue.add)
        discovery = Discovery(client, self._look_again)
        self._surroundings = Surroundings(client, settings.namespaces, self._queue.add, discovery)
        self._plans = Plans(client, settings, self._queue.add)
        self._downloads = Downloads(client, settings.namespaces, self._queue.add)
        self._lengths = RequestLengths(settings.prometheus_address, self._queue.add)
        self._environments = Environments(client, settings.namespaces, self._queue.add, self._lengths)
        self._reconciler = Reconciler(
            client,
            settings,
            self._store,
            self._surroundings,
            self._plans,
            self._downloads,
            self._environments,
        )
        self._is_leading = False
        self._watch_asked_at: float | None = None
        """When kopf was told to watch, until it does."""

    async def run(self) -> None:
        """Until `stop`."""
        health = HealthServer(self._settings.health_port, self._troubles, self._count)
        port = await health.start()
        logger.info("quire-operator %s on %s, health on port %d", __version__, self._client.info.server, port)
        namespace = self._settings.lease_namespace or own_namespace(self._client.info)
        leader = Leader(self._client, namespace, self._settings.lease_name, self._settings.lease_seconds)
        try:
            if self._settings.leader_election:
                if not await self._unless_stopped(leader.acquire()):
                    return
                await self._work([leader.keep()])
                await leader.release()
            else:
                metrics.leading.set(1)
                await self._work([])
        finally:
            await health.close()

    async def _work(self, beside: list[Coroutine[Any, Any, None]]) -> None:
        """Everything that only the leader does, and `beside` it. Returns on `stop`, with nothing left running."""
        async with self._plans, contextlib.aclosing(self._environments), _ending_together() as spawn:
            loops = (*self._surroundings.loops(), *self._downloads.loops(), *self._plans.loops())
            for coroutine in [*beside, *loops, self._lengths.run()]:
                spawn(coroutine)
            self._is_leading = True
            if not await self._unless_stopped(self._first_list(), spawn.ended):
                return
            ready = asyncio.Event()
            self._watch_asked_at = time.monotonic()
            spawn(self._watch.run(self._stop, ready))
            spawn(self._watch.relist())
            for _ in range(self._settings.workers):
                spawn(self._worker())
            await self._unless_stopped(ready.wait(), spawn.ended)
            self._watch_asked_at = None
            await self._unless_stopped(asyncio.Event().wait(), spawn.ended)

    async def _first_list(self) -> None:
        """Know the children before the first reconcile, or each would be read one by one."""
        await self._surroundings.listed()
        await self._downloads.listed()
        while True:
            try:
                await self._watch.list()
            except ApiError as error:
                hint = ": install the CRD, which `quire-operator crd` prints" if error.status == 404 else ""
                logger.warning("LLMServices cannot be listed: %s%s", error, hint)
            except UnreachableError as error:
                logger.warning("LLMServices cannot be listed: %s", error)
            else:
                return
            await asyncio.sleep(2.0)

    async def _worker(self) -> None:
        while True:
            key = await self._queue.take()
            logs.about.set(key)
            await self._reconcile(key)

    async def _reconcile(self, key: Key) -> None:
        begun, name = time.monotonic(), "failed"
        try:
            result = await self._reconciler.reconcile(key)
        except (ApiError, UnreachableError) as error:
            self._put_off(key, error)
        except Exception:
            delay = self._queue.failed(key)
            logger.exception("reconcile failed, again in %.1f s", delay)
        else:
            name = result.name
            self._queue.done(key)
            if result.again_after is not None:
                self._queue.add(key, result.again_after)
        metrics.reconciles.labels(name).observe(time.monotonic() - begun)

    def _put_off(self, key: Key, error: ApiError | UnreachableError) -> None:
        conflict = isinstance(error, ApiError) and error.status == 409
        least = (error.retry_after or 0.0) if isinstance(error, ApiError) else 0.0
        delay = self._queue.failed(key, at_least=least, at_once=conflict)
        going = isinstance(error, ApiError) and error.namespace_is_going
        if not conflict and not going:
            logger.warning("reconcile failed, again in %.1f s: %s", delay, error)

    def _look_again(self) -> None:
        """Every service may become something else: an API has come or gone."""
        for key in self._store:
            self._queue.add(key)

    def _count(self) -> None:
        count_services(self._store.objects(), self._settings.prices())
        self._queue.count()

    def _troubles(self) -> list[str]:
        if not self._is_leading:
            return []
        troubles = []
        for what, seconds in (
            ("a watch has been silent", max(self._surroundings.silence(), self._downloads.silence())),
            ("LLMServices have not been watched", time.monotonic() - (self._watch_asked_at or time.monotonic())),
            ("a reconcile has been running", self._queue.longest_run()),
            ("an LLMService has waited to be reconciled", self._queue.longest_overdue()),
        ):
            if seconds > _STALE_SECONDS:
                troubles.append(f"{what} for {seconds:.0f} s")
        if self._watch.is_deaf:
            troubles.append("the watch of LLMServices misses changes")
        return troubles

    async def _unless_stopped(self, work: Coroutine[Any, Any, Any], ended: asyncio.Future[None] | None = None) -> bool:
        """Await `work`; False when `stop` came first or a task `ended`, whose error is raised."""
        tasks: list[asyncio.Future[Any]] = [asyncio.ensure_future(work), asyncio.ensure_future(self._stop.wait())]
        try:
            await asyncio.wait([*tasks, *([ended] if ended else [])], return_when=asyncio.FIRST_COMPLETED)
            if ended is not None and ended.done():
                ended.result()
            if tasks[0].done():
                tasks[0].result()
                return True
            return False
        finally:
            for task in tasks:
                task.cancel()


class _Together:
    """Tasks that stand and fall together."""

    def __init__(self) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.tasks: list[asyncio.Task[None]] = []

    def __call__(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        task.add_done_callback(self._ended)
        self.tasks.append(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or self.ended.done():
            return
        error = task.exception()
        if error is not None:
            self.ended.set_exception(error)
        else:
            self.ended.set_result(None)  # kopf ends by itself once it is told to stop


@contextlib.asynccontextmanager
async def _ending_together() -> AsyncIterator[_Together]:
    together = _Together()
    try:
        yield together
    finally:
        for task in together.tasks:
            task.cancel()
        # kopf takes five seconds to end, and has nothing to tidy up
        await asyncio.wait(together.tasks, timeout=1.0)
