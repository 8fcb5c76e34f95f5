"""The greatest logit of each row, by whatever finds it fastest in their precision."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch

from quire_engine.core.step import NO_TOKEN
from quire_engine.kernels import cpu
from quire_engine.kernels.greatest import greatest
from quire_engine.sampling.greatest import by_torch

pytestmark = pytest.mark.usefixtures("by_library_or_not")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(params=["library", "numpy"])
def by_library_or_not(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.param == "library":
        monkeypatch.setattr(cpu, "library", cpu.Library(request.getfixturevalue("library_file"), tiles=False))
    else:
        monkeypatch.setattr(cpu, "library", None)
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shift", [0.0, -1000.0], ids=["of both signs", "all negative"])
def test_the_greatest_is_the_first_of_its_like(dtype: torch.dtype, shift: float) -> None:
    logits = (torch.randn(6, 100, generator=torch.Generator().manual_seed(0)) + shift).to(dtype)
    logits[1, [40, 7]] = logits[1].max() + 50
    expected = [row.index(max(row)) for row in logits.tolist()]
    assert expected[1] == 7
    assert greatest(logits).tolist() == by_torch(logits).tolist() == expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("greatest_of_others", [3.0, 0.0, -0.0, -3.0])
@pytest.mark.parametrize("wrong", [math.nan, -math.nan, math.inf], ids=["NaN", "NaN with a sign", "infinity"])
def test_a_row_with_nan_or_infinity_has_none_and_others_have_theirs(
    dtype: torch.dtype, greatest_of_others: float, wrong: float
) -> None:
    logits = torch.full((4, 50), -5.0, dtype=dtype)
    logits[:, [9, 30]] = greatest_of_others
    logits[1, 20] = torch.tensor(wrong, dtype=dtype)
    logits[2] = -math.inf
    logits[3, :9] = -math.inf
    expected = [9, NO_TOKEN, NO_TOKEN, 9]
    assert greatest(logits).tolist() == by_torch(logits).tolist() == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_of_both_signs_are_alike(dtype: torch.dtype) -> None:
    logits = torch.tensor([[-1.0, -0.0, 0.0], [-1.0, 0.0, -0.0]], dtype=dtype)
    assert greatest(logits).tolist() == by_torch(logits).tolist() == [1, 1]


def test_each_number_of_bfloat16_is_compared_as_in_float32() -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    mixed = every[torch.randperm(len(every), generator=torch.Generator().manual_seed(1))].view(4096, 16)
    for row in mixed.split(1):
        assert torch.equal(greatest(row), by_torch(row.float()))


def test_of_no_rows_there_is_none() -> None:
    assert greatest(torch.empty(0, 8, dtype=torch.bfloat16)).tolist() == []


def test_rows_of_a_wider_table_are_read_in_their_place() -> None:
    wide = torch.full((5, 70), 9.0, dtype=torch.bfloat16)
    wide[:, :65] = torch.arange(65).bfloat16() / 64
    assert greatest(wide[:, :65]).tolist() == [64] * 5
    assert greatest(wide[:, :64:2]).tolist() == [31] * 5
