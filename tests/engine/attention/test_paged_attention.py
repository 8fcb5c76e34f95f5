"""Paged attention of mixed batches, against attention written out over whole sequences."""

from __future__ import annotations

import random

import pytest
import torch

from quire_engine.attention.context import AttentionContext, PrefillSpan, attention_context, current_context
from quire_engine.attention.decode_groups import group_decodes
from quire_engine.attention.paged_attention import PagedAttention

BLOCK_SIZE, HEADS, KV_HEADS, HEAD_DIM = 8, 6, 2, 16

pytestmark = pytest.mark.usefixtures("one_thread")


def plain_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None) -> torch.Tensor:
    """Causal attention of the last len(q) tokens of a sequence: [n, heads, dim], [length, kv_heads, dim] twice."""
    k, v = (x.double().repeat_interleave(HEADS // KV_HEADS, dim=1) for x in (k, v))
    scores = torch.einsum("nhd,lhd->hnl", q.double(), k) / HEAD_DIM**0.5
    queries = torch.arange(len(k) - len(q), len(k))[:, None]
    keys = torch.arange(len(k))[None]
    hidden = keys > queries
    if window is not None:
        hidden |= keys <= queries - window
    weights = torch.softmax(scores.masked_fill(hidden, float("-inf")), dim=-1)
    return torch.einsum("hnl,lhd->nhd", weights, v)


@pytest.mark.parametrize("window", [None, 1, 20, 600])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("max_gathered_tokens", [64, 32768])
def test_decodes_and_prompts_of_one_batch_attend_to_their_own_sequences(
    window: int | None, dtype: torch.dtype, tolerance: float, max_gathered_tokens: int
) -> None:
    torch.manual_seed(0)
    # (tokens computed before, tokens of this step)
    sequences = [(5, 1), (700, 1), (0, 1), (8, 1), (63, 1), (300, 1), (0, 30), (0, 600), (41, 9), (100, 560)]
    free = list(range(600))
    random.Random(0).shuffle(free)
    layer = PagedAttention(HEADS, KV_HEADS, HEAD_DIM, window=window)
    caches = torch.zeros(2, 600, BLOCK_SIZE, KV_HEADS, HEAD_DIM, dtype=dtype)
    layer.bind(caches[0], caches[1], max_gathered_tokens)

    queries, keys, values, slots, tables, expected, spans, first = [], [], [], [], [], [], [], 0
    for before, count in sequences:
        length = before + count
        table = torch.tensor([free.pop() for _ in range(-(-length // BLOCK_SIZE))])
        positions = torch.arange(length)
        own = table[positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
        q = torch.randn(count, HEADS, HEAD_DIM).to(dtype)
        k, v = (torch.randn(length, KV_HEADS, HEAD_DIM).to(dtype) for _ in range(2))
        caches[0].flatten(0, 1)[own[:before]] = k[:before]
        caches[1].flatten(0, 1)[own[:before]] = v[:before]
        expected.append(plain_attention(q, k, v, window))
        queries.append(q)
        keys.append(k[before:])
        values.append(v[before:])
        slots.append(own[before:])
        if count == 1:
            tables.append(table)
        else:
            spans.append(PrefillSpan(first, count, before, table))
        first += count
    lengths = [before + 1 for before, count in sequences if count == 1]
    blocks = torch.nn.utils.rnn.pad_sequence(tables, batch_first=True)
    context = AttentionContext(torch.cat(slots), len(lengths), lengths, blocks, spans)
    with attention_context(context):
        out = layer(torch.cat(queries), torch.cat(keys), torch.cat(values))
    torch.testing.assert_close(out.double(), torch.cat(expected), rtol=tolerance, atol=tolerance)


def test_groups_hold_every_sequence_once_and_pad_it_to_less_than_twice_its_length() -> None:
    rng = random.Random(1)
    lengths = [rng.choice([1, 9, 100, 2000]) + rng.randrange(8) for _ in range(50)]
    tables = torch.zeros(50, 300, dtype=torch.int64)
    groups = group_decodes(lengths, tables, BLOCK_SIZE, None, max_tokens=4096)
    assert sorted(row for g in groups for row in g.rows.tolist()) == list(range(50))
    for group in groups:
        padded = group.mask.shape[-1]
        assert len(group.blocks) * BLOCK_SIZE == padded * len(group.rows)
        assert padded * len(group.rows) <= 4096 or len(group.rows) == 1
        for row, mask in zip(group.rows.tolist(), group.mask, strict=True):
            assert mask.sum() == lengths[row]
            assert padded <= 2 * (lengths[row] + BLOCK_SIZE - 1)


def test_a_window_reads_only_the_blocks_that_it_touches() -> None:
    (group,) = group_decodes([1000, 997], torch.arange(250).view(2, 125), BLOCK_SIZE, 20, max_tokens=4096)
    assert group.mask.shape[-1] == 3 * BLOCK_SIZE
    assert group.mask.sum(-1).flatten().tolist() == [20, 20]


def test_what_layers_share_of_a_group_lies_on_the_device_of_the_tables() -> None:
    """Else each layer would copy it there."""
    tables = torch.zeros(2, 4, dtype=torch.int64, device="meta")
    groups = group_decodes([9, 13], tables, BLOCK_SIZE, None, max_tokens=4096, with_positions=True)
    for group in groups:
        assert group.positions is not None
        shared = (group.rows, group.blocks, group.mask, group.positions)
        assert {tensor.device.type for tensor in shared} == {"meta"}
        assert group.positions.shape == group.mask.shape


def test_a_forward_outside_of_a_context_says_so() -> None:
    with pytest.raises(RuntimeError, match=r"inside attention_context"):
        current_context()
