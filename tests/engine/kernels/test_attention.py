"""Attention over pages by the library is attention written out over whole sequences."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire_engine.attention import paged_attention
from quire_engine.attention.context import AttentionContext, PrefillSpan, attention_context
from quire_engine.attention.paged_attention import PagedAttention
from quire_engine.kernels import cpu

pytestmark = pytest.mark.usefixtures("one_thread")
PAGE = 8


def written_out(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None, scale: float, softcap: float | None
) -> torch.Tensor:
    """The last len(q) tokens of a sequence: [n, heads, size], [length, KV heads, size] twice -> as q, float64."""
    k, v = (x.double().repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = torch.einsum("nhd,lhd->hnl", q.double(), k) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    queries, keys = torch.arange(len(k) - len(q), len(k))[:, None], torch.arange(len(k))[None]
    hidden = keys > queries
    if window is not None:
        hidden |= keys <= queries - window
    return torch.einsum("hnl,lhd->nhd", torch.softmax(scores.masked_fill(hidden, float("-inf")), dim=-1), v)


def check(
    library: cpu.Library,
    lengths: list[int],
    tokens: int,
    *,
    heads: tuple[int, int] = (4, 2),
    size: int = 16,
    dtype: torch.dtype = torch.float32,
    window: int | None = None,
    softcap: float | None = None,
    threads: int = 1,
    page: int = PAGE,
) -> torch.Tensor:
    """The last `tokens` tokens of sequences of `lengths`. What nobody wrote is NaN."""
    torch.manual_seed(sum(lengths))
    widest = -(-max(lengths) // page)
    tables = torch.randperm(len(lengths) * widest).view(len(lengths), widest)
    caches = torch.full((2, len(lengths) * widest, page, heads[1], size), float("nan"), dtype=dtype)
    queries, expected = [], []
    for table, length in zip(tables, lengths, strict=True):
        positions = torch.arange(length)
        slots = table[positions // page] * page + positions % page
        k, v = (torch.randn(length, heads[1], size).to(dtype) for _ in range(2))
        library.keep(k, v, caches[0], caches[1], slots)
        queries.append((torch.randn(tokens, heads[0], size) * 2).to(dtype))
        expected.append(written_out(queries[-1], k, v, window, 0.3, softcap))
    q = torch.cat([torch.cat(queries), torch.zeros(len(lengths) * tokens, 1, size, dtype=dtype)], dim=1)[:, :-1]
    out = torch.empty(q.shape, dtype=dtype)
    torch.set_num_threads(threads)
    try:
        library.attention(q, *caches, out, tables, torch.tensor(lengths), window=window, scale=0.3, softcap=softcap)
    finally:
        torch.set_num_threads(1)
    tolerance = 2e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(out.double(), torch.cat(expected), rtol=tolerance, atol=tolerance)
    return out


@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 700), min_size=1, max_size=4),
    tokens=st.integers(1, 40),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 9),
    size=st.sampled_from([16, 48, 64, 80, 128]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    window=st.sampled_from([None, 1, 5, 64, 300]),
    softcap=st.sampled_from([None, 2.0, 50.0]),
    page=st.sampled_from([8, 16, 48]),
)
def test_tokens_see_what_they_may_of_their_own_sequence(
    library: cpu.Library,
    lengths: list[int],
    tokens: int,
    kv_heads: int,
    group: int,
    size: int,
    dtype: torch.dtype,
    window: int | None,
    softcap: float | None,
    page: int,
) -> None:
    lengths = [max(length, tokens) for length in lengths]
    heads = kv_heads * group, kv_heads
    check(library, lengths, tokens, heads=heads, size=size, dtype=dtype, window=window, softcap=softcap, page=page)


@pytest.mark.parametrize("window", [None, 100, 3000])
def test_long_sequences_are_cut_into_parts(library: cpu.Library, window: int | None) -> None:
    check(library, [5000, 512, 513, 3], 1, heads=(71, 1), size=64, window=window)
    check(library, [5000, 512, 513, 3], 1, heads=(71, 1), size=64, window=window, dtype=torch.bfloat16, page=16)


def test_heads_of_the_greatest_size(library: cpu.Library) -> None:
    check(library, [90, 30], 1, heads=(4, 1), size=cpu.LARGEST_HEAD)
    check(library, [90], 20, heads=(4, 1), size=cpu.LARGEST_HEAD, dtype=torch.bfloat16)
    check(library, [90], 20, heads=(4, 1), size=cpu.LARGEST_HEAD, dtype=torch.bfloat16, page=16)


def test_threads_and_other_sequences_change_nothing(library: cpu.Library) -> None:
    alone = check(library, [2000, 7, 900], 1)
    assert torch.equal(check(library, [2000, 7, 900], 1, threads=3), alone)
    together = check(library, [40, 600], 30)
    assert torch.equal(check(library, [40, 600], 30, threads=3), together)
    by_tiles = {"size": 32, "dtype": torch.bfloat16, "page": 16}
    together = check(library, [40, 600], 30, **by_tiles)
    assert torch.equal(check(library, [40, 600], 30, threads=3, **by_tiles), together)
    assert torch.equal(check(library, [40, 600], 30, window=64, **by_tiles)[0], together[0])


def layer_and_context(dtype: torch.dtype, start: int) -> tuple[PagedAttention, AttentionContext]:
    """One decode and a prompt's 11 tokens from `start` on."""
    layer = PagedAttention(4, 2, 16)
    cache = torch.zeros(2, 12, PAGE, 2, 16, dtype=dtype)
    cache[:, 2, :start] = torch.arange(start * 32).view(start, 2, 16) / 100
    layer.bind(cache[0], cache[1], 64)
    slots = torch.tensor([3, *range(16 + start, 27 + start)])
    spans = [PrefillSpan(1, 11, start, torch.tensor([2, 3]))]
    return layer, AttentionContext(slots, 1, [4], torch.tensor([[0]]), spans)


@pytest.mark.parametrize("long", [paged_attention.LONG, 0])  # 0: prompts by torch over the pages that it wrote
@pytest.mark.parametrize("start", [0, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_of_a_mixed_batch_gives_the_same_with_the_library(
    library: cpu.Library, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, start: int, long: int
) -> None:
    monkeypatch.setattr(paged_attention, "LONG", long)
    torch.manual_seed(0)
    qkv = torch.randn(12, 8, 16).to(dtype)
    found = []
    for one in (None, library):
        monkeypatch.setattr(cpu, "library", one)
        layer, context = layer_and_context(dtype, start)
        with torch.inference_mode(), attention_context(context):
            found.append(layer(qkv[:, :4], qkv[:, 4:6], qkv[:, 6:]))
        assert (context.ends is not None) == (one is not None)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found[1], found[0], rtol=tolerance, atol=tolerance)


def test_scores_that_are_no_numbers_give_none(library: cpu.Library) -> None:
    cache = torch.zeros(1, PAGE, 1, 16)
    cache[0, 1] = float("nan")
    out = torch.empty(1, 1, 16)
    operands = torch.ones(1, 1, 16), cache, cache, out, torch.tensor([[0]]), torch.tensor([3])
    library.attention(*operands, window=None, scale=1.0, softcap=None)
    assert out.isnan().all()


def test_scores_beyond_all_numbers_weigh_nothing_beside_others(library: cpu.Library) -> None:
    length, cut = 130, 100
    cache = torch.zeros(-(-length // PAGE), PAGE, 1, 16)
    keys = cache.view(-1, 1, 16)
    keys[:cut] = -3e38
    keys[cut:length] = torch.randn(length - cut, 1, 16)
    values = torch.randn(cache.shape)
    out = torch.empty(1, 1, 16)
    table = torch.arange(len(cache))[None]
    operands = torch.full((1, 1, 16), 3e3), cache, values, out, table, torch.tensor([length])
    library.attention(*operands, window=None, scale=1.0, softcap=None)
    scores = (keys[cut:length, 0].double() * 3e3).sum(-1)
    expected = torch.softmax(scores, 0) @ values.view(-1, 16)[cut:length].double()
    torch.testing.assert_close(out[0, 0].double(), expected, rtol=1e-4, atol=1e-4)
