"""Small sums take one step where that is sure to be right for all ranks, and the group's own way otherwise."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch._C._distributed_c10d import HashStore, ProcessGroupGloo

from quire_engine.distributed import one_shot
from quire_engine.distributed.one_shot import OneShot, is_right, one_shot_for, takes, why_not
from quire_engine.distributed.ranks import TensorRanks

CPU, GPU, MOST = torch.device("cpu"), torch.device("cuda", 0), 16 << 10
Sum = Callable[[Any, torch.Tensor], None]


def together(count: int, what: Callable[[Any], Any]) -> list[Any]:
    """What each of `count` ranks, which are threads here, finds by itself."""
    store = HashStore()

    def rank(number: int) -> Any:
        return what(ProcessGroupGloo(store, number, count))

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(rank, range(count)))


def by_gloo(group: Any, x: torch.Tensor) -> None:
    torch.distributed.all_reduce(x, group=group)


def nothing(group: Any, x: torch.Tensor) -> None:
    """A rank that keeps what it has."""


def last_rank_adds_nothing(group: Any, x: torch.Tensor) -> None:
    own = x.clone()
    by_gloo(group, x)
    if group.rank() == group.size() - 1:
        x.copy_(own)


def in_another_order(group: Any, x: torch.Tensor) -> None:
    """Whole numbers are right, and others round differently on one rank."""
    by_gloo(group, x)
    if group.rank() == 1 and not torch.equal(x, x.round()):
        x.mul_(1 + torch.finfo(x.dtype).eps)


@pytest.mark.parametrize(
    ("add", "right"), [(by_gloo, True), (nothing, False), (last_rank_adds_nothing, False), (in_another_order, False)]
)
def test_sums_are_compared_on_all_ranks_which_agree(add: Sum, right: bool) -> None:
    found = together(2, lambda group: is_right(lambda x: add(group, x), group, CPU, MOST))
    assert found == [right, right]


def test_what_is_small_and_aligned_and_of_a_type_that_can_be_added_is_taken() -> None:
    x = torch.zeros(8, 64, dtype=torch.bfloat16)
    assert takes(x, x.nbytes)
    assert not takes(x, x.nbytes - 1)
    assert takes(x[1:], x.nbytes)
    assert takes(x.float(), 2 * x.nbytes)
    assert not takes(x.half(), x.nbytes)
    assert not takes(x[:, :32], x.nbytes)
    assert not takes(x[:0], x.nbytes)
    assert not takes(x.view(-1)[1:9], x.nbytes)  # begins between two of 16 bytes
    assert not takes(x.view(-1)[:9], x.nbytes)  # ends so


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"wanted": False}, "--disable-custom-all-reduce is set"),
        ({"size": 6}, "there are 6 ranks in a stage, and one step is for 2, 4, 8"),
        ({"one_node": False}, "on several nodes"),
        ({"linked": False}, "NVLink does not join"),
    ],
)
def test_the_reason_for_leaving_sums_to_nccl_is_given(changes: dict[str, Any], reason: str | None) -> None:
    found = why_not(**{"size": 4, "wanted": True, "one_node": True, "linked": True} | changes)
    assert found == reason if reason is None else reason in (found or "")


class Buffer:
    """In the place of `OneShot`."""

    most_bytes = MOST
    fails_on: int | None = None

    def __init__(self, group: Any, device: torch.device) -> None:
        if group.rank() == self.fails_on:
            raise RuntimeError("CUDA driver error: invalid argument\nand a stack of C++")

    def add(self, x: torch.Tensor) -> None:
        raise AssertionError("not on a CPU")


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(one_shot, "_are_linked", lambda gpus: True)
    monkeypatch.setattr(one_shot, "OneShot", Buffer)
    monkeypatch.setattr(Buffer, "fails_on", None)
    monkeypatch.setattr(one_shot, "is_right", lambda *_: True)
    caplog.set_level(logging.INFO, logger="quire_engine.distributed.one_shot")


def found_by(count: int, **changes: Any) -> list[bool]:
    told = {"wanted": True, "one_node": True} | changes
    return together(count, lambda group: one_shot_for(group, GPU, range(count), **told) is not None)


@pytest.mark.usefixtures("gpus")
def test_sums_that_are_right_are_taken_and_the_log_says_up_to_which_size(caplog: pytest.LogCaptureFixture) -> None:
    assert found_by(2) == [True, True]
    tried = "trying sums over 2 GPUs in one step (--disable-custom-all-reduce: without)"
    assert sorted(caplog.messages) == ["sums of up to 16 KiB over 2 GPUs take one step"] * 2 + [tried] * 2


@pytest.mark.usefixtures("gpus")
def test_where_one_rank_cannot_none_does_and_the_log_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Buffer, "fails_on", 1)
    assert found_by(2) == [False, False]
    assert set(caplog.messages) == {
        "all sums over GPUs are NCCL's: CUDA driver error: invalid argument",
        "all sums over GPUs are NCCL's: another rank cannot do otherwise",
    }


@pytest.mark.usefixtures("gpus")
def test_sums_that_are_wrong_are_left_to_nccl(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(one_shot, "is_right", lambda *_: False)
    assert found_by(2) == [False, False]
    answers = {message for message in caplog.messages if not message.startswith("trying")}
    assert answers == {"all sums over GPUs are NCCL's: its sums are not NCCL's"}


@pytest.mark.usefixtures("gpus")
def test_a_flag_leaves_sums_to_nccl(caplog: pytest.LogCaptureFixture) -> None:
    assert found_by(2, wanted=False) == [False, False]
    assert set(caplog.messages) == {"all sums over GPUs are NCCL's: --disable-custom-all-reduce is set"}


def test_one_rank_and_ranks_on_a_cpu_have_nothing_to_choose() -> None:
    assert one_shot_for(None, GPU, range(1), wanted=True, one_node=True) is None
    assert together(2, lambda group: one_shot_for(group, CPU, range(2), wanted=True, one_node=True)) == [None, None]


def test_ranks_add_in_one_step_what_is_taken_and_the_rest_by_their_group() -> None:
    class Tripling(OneShot):
        def __init__(self) -> None:
            self.most_bytes = 64

        def add(self, x: torch.Tensor) -> None:
            x.mul_(3)

    def sums(group: Any) -> list[float]:
        ranks = TensorRanks(group.rank(), 2, group, one_shot=Tripling())
        return [float(ranks.all_reduce(torch.ones(count)).sum()) for count in (16, 32)]

    assert together(2, sums) == [[48.0, 64.0]] * 2


def test_what_the_kernel_is_called_with_is_what_torch_declares() -> None:
    if not hasattr(torch.ops.symm_mem, "one_shot_all_reduce_copy_out"):
        pytest.skip("this torch has no such kernel, and NCCL adds everything")
    declared = str(torch.ops.symm_mem.one_shot_all_reduce_copy_out.default._schema)
    assert declared.partition("(")[2].startswith(
        "Tensor symm_buffer, Tensor local_input, str reduce_op, str group_name, Tensor(a!) out)"
    )
