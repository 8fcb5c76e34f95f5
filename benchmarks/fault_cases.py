"""What a cluster does to an operator, each as a case: an operator that is ready for it, and the fault itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from benchmarks.operator_bench import Bench
from tests.operator.disturbances import Count, FakeClock, cutting_watches, stuttering
from tests.operator.faulty_proxy import FaultyProxy, faulty_proxy
from tests.operator.operator_process import OperatorProcess

_REFUSE_EVERY = 3
_LATE_SECONDS = 1.0


@dataclass(frozen=True)
class Case:
    """`fault` lasts as long as it is entered, and may be entered more than once."""

    operator: OperatorProcess
    fault: Callable[[], contextlib.AbstractContextManager[Count]]


@contextlib.contextmanager
def nothing(running: Bench) -> Iterator[Case]:
    """No fault: what the others are compared with."""
    yield Case(running.start_operator(), lambda: contextlib.nullcontext(lambda: 0))


@contextlib.contextmanager
def restarted(running: Bench) -> Iterator[Case]:
    """The API server is killed and started again; the fault begins when it is ready."""

    @contextlib.contextmanager
    def restart() -> Iterator[Count]:
        running.plane.restart_apiserver()
        yield lambda: 1

    yield Case(running.start_operator(), restart)


@contextlib.contextmanager
def refused(running: Bench) -> Iterator[Case]:
    """Every third request of the operator's is answered 429."""
    with _proxied(running) as (proxy, operator):

        @contextlib.contextmanager
        def refuse() -> Iterator[Count]:
            before, proxy.refuse_every = proxy.refused, _REFUSE_EVERY
            yield lambda: proxy.refused - before
            proxy.refuse_every = 0

        yield Case(operator, refuse)


@contextlib.contextmanager
def late(running: Bench) -> Iterator[Case]:
    """The operator has every answer a second late."""
    with _proxied(running) as (proxy, operator):

        @contextlib.contextmanager
        def delay() -> Iterator[Count]:
            before, proxy.delay = proxy.delayed, _LATE_SECONDS
            yield lambda: proxy.delayed - before
            proxy.delay = 0.0

        yield Case(operator, delay)


@contextlib.contextmanager
def cut(running: Bench) -> Iterator[Case]:
    """The operator's watches break, all of them, at once and again every second."""
    with _proxied(running) as (proxy, operator):
        yield Case(operator, lambda: cutting_watches(proxy))


@contextlib.contextmanager
def slow_etcd(running: Bench) -> Iterator[Case]:
    """etcd stands still for 0.7 s of each second."""
    yield Case(running.start_operator(), lambda: stuttering(running.plane.daemons, "etcd"))


@contextlib.contextmanager
def jumping_clock(running: Bench) -> Iterator[Case]:
    """The operator's clock jumps by an hour, to and fro, every 1.5 s."""
    clock = FakeClock(running.directory / "clock")
    yield Case(running.start_operator(environment=clock.environment), clock.jumping)


@contextlib.contextmanager
def _proxied(running: Bench) -> Iterator[tuple[FaultyProxy, OperatorProcess]]:
    with faulty_proxy(running.plane) as proxy:
        yield proxy, running.start_operator(kubeconfig=proxy.kubeconfig(running.directory, running.operator_user))


CASES: Mapping[str, Callable[[Bench], contextlib.AbstractContextManager[Case]]] = {
    "no_fault": nothing,
    "api_server_restarted": restarted,
    "every_third_request_429": refused,
    "every_answer_1_s_late": late,
    "watches_cut_every_second": cut,
    "etcd_still_for_0.7_of_each_second": slow_etcd,
    "clock_jumps_by_an_hour": jumping_clock,
}
