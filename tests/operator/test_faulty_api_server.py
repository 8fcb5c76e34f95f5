"""An API server that refuses, cuts off, and is slow: the operator converges, and makes nothing anew that is there."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from e2e.cluster.control_plane import ControlPlane, start_control_plane
from e2e.cluster.errors import ClusterError
from e2e.cluster.kubeconfig import User
from quire_operator.kubeapi.resources import DEPLOYMENTS
from tests.operator.api_client import Namespace, eventually
from tests.operator.conftest import OPERATOR_USER, operators, prepare
from tests.operator.disturbances import FakeClock, stuttering
from tests.operator.faulty_proxy import FaultyProxy, faulty_proxy
from tests.operator.objects import identities
from tests.operator.operator_process import OperatorProcess
from tests.operator.services import manifest

pytestmark = pytest.mark.control_plane

Start = Callable[..., OperatorProcess]
NAMES = [f"llm-{number}" for number in range(10)]


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane of its own, since etcd is stopped now and then."""
    plane = start_control_plane(tmp_path_factory.mktemp("faulty"), users=[User(OPERATOR_USER, ())])
    yield plane
    plane.stop()


@pytest.fixture(scope="module")
def apart(plane: ControlPlane) -> Namespace:
    api = prepare(plane)
    api.make_namespace("faulty")
    return Namespace(api, "faulty")


@pytest.fixture
def proxy(plane: ControlPlane) -> Iterator[FaultyProxy]:
    with faulty_proxy(plane) as proxy:
        yield proxy


@pytest.fixture
def operator(plane: ControlPlane, proxy: FaultyProxy, apart: Namespace, tmp_path: Path) -> Iterator[OperatorProcess]:
    """An operator that reaches the API server through the proxy, with ten services that have settled."""
    kubeconfig = proxy.kubeconfig(tmp_path, plane.users[OPERATOR_USER])
    with operators(plane, tmp_path) as start:
        operator = start("--no-leader-election", kubeconfig=kubeconfig)
        for name in NAMES:
            if apart.find(DEPLOYMENTS, name) is None:
                apart.create(manifest(name))
        eventually(lambda: all(apart.condition(name, "Ready") for name in NAMES), 60)
        operator.wait_until_idle()
        yield operator


def edit_all(apart: Namespace, count: int) -> None:
    for name in NAMES:
        apart.change(name, {"engine": {"maxNumSeqs": count}})


def all_say(apart: Namespace, count: int) -> bool:
    wanted = f"--max-num-seqs={count}"
    return all(
        wanted in item["spec"]["template"]["spec"]["containers"][0]["args"]
        for item in apart.api.list(DEPLOYMENTS, apart.name)
    )


def test_requests_that_are_refused_for_now_are_made_again(
    operator: OperatorProcess, proxy: FaultyProxy, apart: Namespace
) -> None:
    before = identities(apart.api, apart.name)
    proxy.refuse_every = 3
    edit_all(apart, 11)
    eventually(lambda: all_say(apart, 11), 120)
    assert proxy.refused > 3
    proxy.refuse_every = 0
    operator.wait_until_idle()
    assert identities(apart.api, apart.name) == before
    assert operator.process.poll() is None


def test_watches_that_break_lose_no_change(operator: OperatorProcess, proxy: FaultyProxy, apart: Namespace) -> None:
    before = identities(apart.api, apart.name)
    for count in range(12, 17):
        assert proxy.cut_watches() > 0
        edit_all(apart, count)
        proxy.cut_watches()
        eventually(lambda count=count: all_say(apart, count), 60)
    operator.wait_until_idle()
    assert identities(apart.api, apart.name) == before


def test_an_etcd_that_stops_now_and_then_is_waited_for(
    operator: OperatorProcess, plane: ControlPlane, apart: Namespace
) -> None:
    before = identities(apart.api, apart.name)
    with stuttering(plane.daemons, "etcd") as stops:
        edit_all(apart, 21)
        eventually(lambda: all_say(apart, 21), 120)
    assert stops() > 0
    operator.wait_until_idle()
    assert identities(apart.api, apart.name) == before
    assert operator.process.poll() is None


@pytest.fixture
def clock(tmp_path: Path) -> FakeClock:
    """A clock of one process's own; a skip where that cannot be installed."""
    try:
        return FakeClock(tmp_path / "clock")
    except ClusterError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))


def test_a_clock_that_jumped_is_true_again_though_a_fault_was_found(clock: FakeClock, tmp_path: Path) -> None:
    def find() -> None:
        with clock.jumping(seconds=60):
            eventually(lambda: (tmp_path / "clock").read_text() == "+1h", 60)
            raise ValueError("found")

    with pytest.raises(ValueError, match="found"):
        find()
    assert (tmp_path / "clock").read_text() == "+0"


def test_a_clock_that_jumps_by_an_hour_changes_nothing(
    plane: ControlPlane, apart: Namespace, clock: FakeClock, tmp_path: Path
) -> None:
    with operators(plane, tmp_path) as start:
        operator = start("--lease-seconds=6", environment=clock.environment)
        operator.wait_until_leading()
        eventually(lambda: all(apart.condition(name, "Ready") for name in NAMES), 60)
        operator.wait_until_idle()
        before, calls = identities(apart.api, apart.name), operator.calls()
        for jump in ("+1h", "-1h", "+0"):
            clock.jump(jump)
            time.sleep(1.5)  # more than one renewal of the Lease
        assert operator.calls() == calls
        edit_all(apart, 31)
        eventually(lambda: all_say(apart, 31), 60)
        assert identities(apart.api, apart.name) == before
        assert operator.process.poll() is None
