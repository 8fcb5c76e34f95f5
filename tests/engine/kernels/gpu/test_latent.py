"""Kernels of attention over latent vectors, against attention written out over whole sequences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire_engine.attention.context import AttentionContext, PrefillSpan, attention_context
from quire_engine.attention.latent_attention import LatentAttention
from quire_engine.kernels import choice
from tests.engine.kernels.gpu.paged_cases import TOLERANCES, Case

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES: dict[str, st.SearchStrategy[Any]] = {
    "heads": st.sampled_from([1, 3, 16, 20, 70]),
    "rank": st.sampled_from([8, 16, 24, 64]),
    "rope": st.sampled_from([4, 16, 24]),
    "page": st.sampled_from([8, 16]),
    "dtype": st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    "seed": st.integers(0, 999),
}


class LatentCase(Case):
    """Keys are values too, but for their last part."""

    def __init__(self, sequences: list[tuple[int, int]], *, heads: int, rank: int, rope: int, **more: Any) -> None:
        super().__init__(sequences, group=heads, num_kv_heads=1, head_dim=rank + rope, **more)
        self.rank = rank
        self.of_sequences = [(k, k) for k, _ in self.of_sequences]

    def check(self, found: torch.Tensor, scale: float) -> None:
        near = TOLERANCES[self.dtype]
        wanted = self.expected(scale)[..., : self.rank]
        torch.testing.assert_close(found.cpu().double(), wanted, atol=near, rtol=near)


def nowhere(case: LatentCase, device: torch.device) -> torch.Tensor:
    return torch.full((*case.q.shape[:2], case.rank), float("nan"), dtype=case.dtype, device=device)


def check_chunks(case: LatentCase, device: torch.device) -> None:
    from quire_engine.kernels.gpu.attention import Spans
    from quire_engine.kernels.gpu.latent import attend_chunks, tokens_of_tile

    tokens = tokens_of_tile(case.group, case.dtype)
    spans, tiles, first = [], [], 0
    for i, (before, count) in enumerate(case.sequences):
        spans.append((first, count, before))
        tiles += [(i, begin) for begin in range(0, count, tokens)]
        first += count
    rows, of_tiles = (torch.tensor(x, dtype=torch.int32, device=device) for x in (spans, tiles))
    out, scale = nowhere(case, device), case.head_dim**-0.5
    attend_chunks(case.q.to(device), case.k_cache.to(device), out, Spans(case.tables.to(device), rows, of_tiles), scale)
    case.check(out, scale)


def decoded(case: LatentCase, device: torch.device, lengths: list[int], scale: float) -> torch.Tensor:
    from quire_engine.kernels.gpu.latent import attend_decodes

    out, on_device = nowhere(case, device), torch.tensor(lengths, dtype=torch.int32, device=device)
    attend_decodes(case.q.to(device), case.k_cache.to(device), out, case.tables.to(device), on_device, scale)
    return out


def check_decodes(case: LatentCase, device: torch.device) -> None:
    scale = case.head_dim**-0.5
    case.check(decoded(case, device, [before + count for before, count in case.sequences], scale), scale)


@settings(deadline=None, max_examples=30)
@given(
    shape=st.fixed_dictionaries(SHAPES),
    sequences=st.lists(st.tuples(st.integers(0, 90), st.sampled_from([1, 1, 2, 9, 40])), min_size=1, max_size=4),
)
def test_chunks_of_one_launch_attend_to_their_own_sequences(
    device: torch.device, shape: dict[str, Any], sequences: list[tuple[int, int]]
) -> None:
    check_chunks(LatentCase(sequences, **shape), device)


@settings(deadline=None, max_examples=20)
@given(
    shape=st.fixed_dictionaries(SHAPES),
    lengths=st.lists(st.sampled_from([1, 2, 31, 32, 65, 255, 256, 257, 700]), min_size=1, max_size=3),
)
def test_decodes_split_along_their_length_attend_to_all_of_it(
    device: torch.device, shape: dict[str, Any], lengths: list[int]
) -> None:
    check_decodes(LatentCase([(length - 1, 1) for length in lengths], **shape), device)


def test_a_sequence_longer_than_all_least_parts_is_read_to_its_end(device: torch.device) -> None:
    check_decodes(LatentCase([(9000, 1)], heads=4, rank=16, rope=4, page=16), device)


def test_rows_of_padding_get_zeros_and_take_turns_as_others_do(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quire_engine.kernels.gpu import latent

    case = LatentCase([(9, 1), (300, 1), (0, 1), (20, 1), (70, 1)], heads=3, rank=16, rope=4)
    together = decoded(case, device, [10, 301, 0, 21, 71], 0.25)
    monkeypatch.setattr(latent, "PARTIAL_BYTES", 2 * 4 * 3 * latent.SPLITS * 16)  # two at once
    by_turns = decoded(case, device, [10, 301, 0, 21, 71], 0.25)
    assert torch.equal(together, by_turns)
    assert not by_turns[2].any()
    others = [0, 1, 3, 4]
    wanted = case.expected(0.25)[others, :, :16]
    torch.testing.assert_close(by_turns[others].cpu().double(), wanted, atol=2e-5, rtol=2e-5)


@settings(deadline=None, max_examples=15)
@given(
    decodes=st.lists(st.integers(1, 60), max_size=3),
    prompts=st.lists(st.tuples(st.sampled_from([0, 0, 1, 30]), st.integers(2, 20)), max_size=4),
    seed=st.integers(0, 99),
)
def test_a_layer_gives_by_kernels_what_it_gives_by_torch(
    device: torch.device, decodes: list[int], prompts: list[tuple[int, int]], seed: int
) -> None:
    heads, rank, rope, nope, value, page = 3, 16, 8, 12, 10, 8
    sequences = [(length - 1, 1) for length in decodes] + prompts
    case = LatentCase(sequences, heads=heads, rank=rank, rope=rope, page=page, seed=seed)
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator).to(device)

    rows = sum(count for _, count in sequences)
    q, vectors = draw(rows, heads, nope + rope), draw(rows, 1, rank + rope)
    projections = draw(heads, nope, rank), draw(heads, value, rank)
    slots, spans, first = [], [], 0
    for i, (before, count) in enumerate(sequences):
        at = torch.arange(before, before + count)
        slots.append(case.tables[i][at // page] * page + at % page)
        if i >= len(decodes):
            spans.append(PrefillSpan(first, count, before, case.tables[i, : -(-(before + count) // page)].to(device)))
        first += count
    results = []
    for by_kernels in (True, False):
        layer = LatentAttention(heads, rank, rope, scale=0.3)
        cache = case.k_cache.nan_to_num().to(device)  # torch's way reads padding
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(choice, "interpreted_on_cpu", by_kernels)
            patch.setattr(choice, "has_triton", lambda by_kernels=by_kernels: by_kernels)
            layer.bind(cache, cache, 1 << 10)
        assert layer.has_kernels is by_kernels
        tables = case.tables[: len(decodes)].to(device)
        context = AttentionContext(
            torch.cat([torch.zeros(0, dtype=torch.int64), *slots]).to(device), len(decodes), decodes, tables, spans
        )
        with attention_context(context):
            results.append(layer.over_latents(q, vectors, *projections))
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "heads"), [(torch.bfloat16, 128), (torch.bfloat16, 16), (torch.float32, 16)], ids=str
)
def test_shapes_of_real_models_are_attended_to(device: torch.device, dtype: torch.dtype, heads: int) -> None:
    real: dict[str, Any] = {"heads": heads, "rank": 512, "rope": 64, "page": 16, "dtype": dtype}
    check_chunks(LatentCase([(130, 20), (0, 3), (511, 1)], **real), device)
    check_decodes(LatentCase([(511, 1), (0, 1), (2000, 1)], **real), device)
