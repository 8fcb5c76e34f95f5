"""Weights get memory in large pages, and stay what they are."""

from __future__ import annotations

import mmap
from unittest import mock

import pytest
import torch
from torch import nn

from quire_engine.kernels import large_pages
from quire_engine.kernels.large_pages import LEAST, move_to_large_pages


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.large = nn.Parameter(torch.zeros(LEAST, dtype=torch.int8), requires_grad=False)
        self.other = nn.Parameter(torch.zeros(3, LEAST // 2 + 5, dtype=torch.bfloat16), requires_grad=False)
        self.tied = self.other
        self.small = nn.Parameter(torch.ones(7))
        self.register_buffer("table", torch.ones(LEAST))


def test_large_weights_lie_together_and_can_be_written() -> None:
    model = Model()
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
    assert model.large.untyped_storage().data_ptr() == model.other.untyped_storage().data_ptr()
    assert (model.small.data_ptr(), model.get_buffer("table").data_ptr()) == (small, table)
    assert (model.small == 1).all()


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
