"""The cut by digits is where a sort would cut."""

from __future__ import annotations

import pytest
import torch

from quire_engine.sampling.radix import where_sums_reach
from quire_engine.sampling.sampler import restrict

pytestmark = pytest.mark.usefixtures("one_thread")


def by_sorting(values: torch.Tensor, weights: torch.Tensor, wanted: float) -> float:
    order = values.argsort(descending=True)
    sums = weights[order].cumsum(0)
    reached = (sums >= wanted).nonzero()
    return values[order][reached[0] if len(reached) else -1].item()


@pytest.mark.parametrize("kind", ["flat", "peaked", "many alike", "tiny", "mostly zero"])
def test_sums_reach_what_is_wanted_at_the_value_where_sorted_ones_do(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 3000, generator=generator) * {"flat": 0.1, "peaked": 8.0}.get(kind, 1.0)
    values = torch.softmax(logits, -1)
    if kind == "many alike":
        values = (values * 4000).round() / 4000
    elif kind == "tiny":
        values = values * 1e-38
    elif kind == "mostly zero":
        values = torch.where(values > 1e-3, values, 0.0)
    weights = values.double()
    for share in (1e-9, 0.1, 0.5, 0.9, 0.999):
        wanted = share * weights.sum(-1)
        got = where_sums_reach(values, weights, wanted)
        expected = [by_sorting(v, w, x.item()) for v, w, x in zip(values, weights, wanted, strict=True)]
        assert got.tolist() == expected
    for count in (1, 7, 2999, 3000):
        got = where_sums_reach(values, torch.ones_like(weights), torch.full((6,), float(count)).double())
        assert got.tolist() == values.sort(descending=True).values[:, count - 1].tolist()


def test_all_is_kept_where_the_sum_is_never_reached() -> None:
    values = torch.tensor([[0.5, 0.25, 0.125]])
    assert where_sums_reach(values, values.double(), torch.tensor([2.0]).double()) <= 0.125


@pytest.mark.parametrize(("k", "p"), [(5000, 0.9), (2000, 0.5), (2000, 1.0), (1500, 0.999)])
def test_a_flat_row_of_a_large_vocabulary_is_cut_alone_as_among_others(k: int, p: float) -> None:
    rows = torch.softmax(torch.randn(5, 5000, generator=torch.Generator().manual_seed(1)) * 0.3, -1)
    limits = (torch.full((5,), k), torch.full((5,), p), None)
    together = rows.clone()
    restrict(together, *limits)
    for i in range(5):
        alone = rows[i : i + 1].clone()
        restrict(alone, *(x if x is None else x[:1] for x in limits))
        assert torch.equal(alone[0], together[i])
        ordered = rows[i].double().sort(descending=True).values[:k]
        kept = int(((ordered.cumsum(0) - ordered) < p * ordered.sum()).sum()) if p < 1 else k
        assert int((together[i] > 0).sum()) == kept
