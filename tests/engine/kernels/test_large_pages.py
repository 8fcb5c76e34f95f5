"""Weights get memory in large pages, and stay what they are."""

from __future__ import annotations

import mmap
import time
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import nn

from quire_engine.kernels import large_pages
from quire_engine.kernels.large_pages import LEAST, PagesAhead, move_to_large_pages, zeros
from quire_engine.starting.memory import held_by_weights


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.large = nn.Parameter(torch.zeros(LEAST, dtype=torch.int8), requires_grad=False)
        self.other = nn.Parameter(torch.zeros(3, LEAST // 2 + 5, dtype=torch.bfloat16), requires_grad=False)
        self.tied = self.other
        self.small = nn.Parameter(torch.ones(7))
        self.register_buffer("table", torch.ones(LEAST))


def test_large_weights_get_memory_that_can_be_written() -> None:
    model = Model()
    before = model.large.data_ptr(), model.other.data_ptr()
    small, table = model.small.data_ptr(), model.get_buffer("table").data_ptr()
    move_to_large_pages(model)
    assert (model.large == 0).all()
    assert (model.other == 0).all()
    assert model.tied is model.other
    assert model.other.shape == (3, LEAST // 2 + 5)
    model.large.fill_(7)
    model.other.fill_(2.0)
    assert (model.large == 7).all()
    assert (model.other == 2.0).all()
    assert (model.large.data_ptr(), model.other.data_ptr()) != before
    assert (model.small.data_ptr(), model.get_buffer("table").data_ptr()) == (small, table)
    assert (model.small == 1).all()


def test_rows_that_lie_apart_do_so_there_and_count_with_what_is_between_them() -> None:
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(1024, 1024 + 32, dtype=torch.bfloat16)[:, :1024], requires_grad=False)
    model.tied = model.weight
    before = model.weight.data_ptr()
    move_to_large_pages(model)
    assert model.weight.data_ptr() != before
    assert model.weight.shape == (1024, 1024)
    assert model.weight.stride() == (1024 + 32, 1)
    assert held_by_weights(model) == 1024 * (1024 + 32) * 2


def test_weights_that_others_are_views_of_stay_where_they_are() -> None:
    model = Model()
    model.view = nn.Parameter(model.large.detach()[: LEAST // 2], requires_grad=False)
    before = model.large.data_ptr()
    move_to_large_pages(model)
    model.view.fill_(3)
    assert model.large.data_ptr() == before
    assert (model.large[: LEAST // 2] == 3).all()


def test_memory_of_a_weight_goes_with_it() -> None:
    model = Model()
    model.large = nn.Parameter(torch.zeros(64 * LEAST, dtype=torch.int8), requires_grad=False)
    move_to_large_pages(model)
    model.large.fill_(1)
    held = rss()
    del model.large
    assert rss() < held - 32 * LEAST  # a thread of another test may take some meanwhile


def test_a_kernel_without_large_pages_gives_small_ones() -> None:
    with mock.patch.object(large_pages, "_ASKED", -1):  # no such advice: it refuses
        model = Model()
        move_to_large_pages(model)
    assert (model.large == 0).all()


def test_too_much_memory_is_refused_as_torch_does() -> None:
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(LEAST, dtype=torch.int8), requires_grad=False)
    refused = mock.patch.object(mmap, "mmap", side_effect=OSError("Cannot allocate memory"))
    with refused, pytest.raises(RuntimeError, match="can't allocate memory: 1048576 bytes"):
        move_to_large_pages(model)


def rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def resident(tensor: torch.Tensor) -> int:
    """Bytes of the memory that a tensor lies in which have pages."""
    at, found = tensor.data_ptr(), False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, _, rest = line.partition(" ")
        if "-" in first and not first.endswith(":"):
            start, end = (int(one, 16) for one in first.split("-"))
            found = start <= at < end
        elif found and first == "Rss:":
            return 1024 * int(rest.split()[0])
    raise AssertionError("the tensor lies nowhere")


def test_memory_is_taken_a_little_before_it_is_written_to_and_no_earlier() -> None:
    row = 1 << 18
    keys = zeros((512, row), torch.int8)  # 128 MiB
    before = resident(keys)
    ahead = PagesAhead([keys])
    for reached, least in ((0, 16), (7, 16), (8, 24), (300, 316)):
        ahead.reach(reached)
        for _ in range(200):
            if resident(keys) - before >= (least - 1) * row:
                break
            time.sleep(0.02)
        assert (
            (least - 1) * row <= resident(keys) - before <= (least + 9) * row
        )  # a large page may begin before its rows
    assert (keys[:320] == 0).all()
    ahead.reach(511)
    ahead.reach(511)
