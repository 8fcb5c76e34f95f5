"""Kernels of attention, against attention written out over whole sequences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire_engine.attention.scores import alibi_slopes
from tests.engine.kernels.gpu.paged_cases import TOLERANCES, Case

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
SHAPES: dict[str, st.SearchStrategy[Any]] = {
    "group": st.sampled_from([1, 2, 3, 8, 17]),
    "num_kv_heads": st.integers(1, 2),
    "head_dim": st.sampled_from([8, 16, 24, 64]),
    "page": st.sampled_from([8, 16]),
    "window": st.sampled_from([None, None, 1, 5, 70]),
    "dtype": DTYPES,
    "seed": st.integers(0, 999),
}
BENT = st.sampled_from(["plain", "plain", "soft-capped", "alibi", "alibi in bfloat16"])


def bend(case: dict[str, Any], how: str) -> dict[str, Any]:
    heads = case["group"] * case["num_kv_heads"]
    case["softcap"] = 2.0 if how == "soft-capped" else None
    if how.startswith("alibi"):
        case["slopes"] = alibi_slopes(heads).to(torch.bfloat16 if "bfloat16" in how else torch.float32)
    return case


def rules_of(case: Case, device: torch.device, scale: float) -> Any:
    from quire_engine.kernels.gpu.attention import ScoreRules

    slopes = None if case.slopes is None else case.slopes.to(device)
    return ScoreRules(scale, case.window, case.softcap, slopes)


def check_spans(case: Case, device: torch.device) -> None:
    from quire_engine.kernels.gpu.attention import Spans, attend, rows_of_tile

    scale = case.head_dim**-0.5
    _, tokens = rows_of_tile(case.q.shape[1], case.num_kv_heads, case.head_dim, case.dtype)
    spans, tiles, first = [], [], 0
    for i, (before, count) in enumerate(case.sequences):
        spans.append((first, count, before))
        tiles += [(i, begin) for begin in range(0, count, tokens)]
        first += count
    what = Spans(
        case.tables.to(device),
        torch.tensor(spans, dtype=torch.int32, device=device),
        torch.tensor(tiles, dtype=torch.int32, device=device),
    )
    q = case.q.to(device)
    out = torch.full_like(q, float("nan"))
    attend(q, case.k_cache.to(device), case.v_cache.to(device), out, what, rules_of(case, device, scale))
    wanted, tolerance = case.expected(scale), TOLERANCES[case.dtype]
    torch.testing.assert_close(out.cpu().double(), wanted, atol=tolerance, rtol=tolerance)


def check_decodes(case: Case, device: torch.device) -> None:
    from quire_engine.kernels.gpu.attention import attend_decodes

    scale = case.head_dim**-0.5
    lengths = torch.tensor([before + count for before, count in case.sequences], dtype=torch.int32, device=device)
    q = case.q.to(device)
    out = torch.full_like(q, float("nan"))
    caches = case.k_cache.to(device), case.v_cache.to(device)
    attend_decodes(q, *caches, out, case.tables.to(device), lengths, rules_of(case, device, scale))
    wanted, tolerance = case.expected(scale), TOLERANCES[case.dtype]
    torch.testing.assert_close(out.cpu().double(), wanted, atol=tolerance, rtol=tolerance)


@settings(deadline=None, max_examples=40)
@given(
    shape=st.fixed_dictionaries(SHAPES),
    how=BENT,
    sequences=st.lists(st.tuples(st.integers(0, 90), st.sampled_from([1, 1, 2, 9, 40])), min_size=1, max_size=4),
)
def test_prompts_chunks_and_decodes_of_one_launch_attend_to_their_own_sequences(
    device: torch.device, shape: dict[str, Any], how: str, sequences: list[tuple[int, int]]
) -> None:
    check_spans(Case(sequences, **bend(shape, how)), device)


@settings(deadline=None, max_examples=25)
@given(
    shape=st.fixed_dictionaries(SHAPES | {"window": st.sampled_from([None, 1, 70, 300])}),
    how=BENT,
    lengths=st.lists(st.sampled_from([1, 2, 63, 64, 65, 255, 256, 257, 700]), min_size=1, max_size=2),
)
def test_decodes_split_along_their_length_attend_to_all_of_it(
    device: torch.device, shape: dict[str, Any], how: str, lengths: list[int]
) -> None:
    check_decodes(Case([(length - 1, 1) for length in lengths], **bend(shape, how)), device)


def test_a_sequence_longer_than_all_least_parts_is_read_to_its_end(device: torch.device) -> None:
    check_decodes(Case([(5000, 1)], group=4, num_kv_heads=1, page=16), device)


def test_a_row_that_pads_the_batch_gets_zeros(device: torch.device) -> None:
    from quire_engine.kernels.gpu.attention import ScoreRules, attend_decodes

    case = Case([(9, 1), (3, 1)])
    q, lengths = case.q.to(device), torch.tensor([10, 0], dtype=torch.int32, device=device)
    out = torch.full_like(q, float("nan"))
    caches = case.k_cache.to(device), case.v_cache.to(device)
    attend_decodes(q, *caches, out, case.tables.to(device), lengths, ScoreRules(0.25))
    assert not out[1].any()
    torch.testing.assert_close(out[0].cpu().double(), case.expected(0.25)[0], atol=2e-5, rtol=2e-5)


def test_a_row_of_a_decode_does_not_depend_on_the_rest_of_the_batch(device: torch.device) -> None:
    from quire_engine.kernels.gpu.attention import ScoreRules, attend_decodes

    case = Case([(600, 1), (3, 1), (90, 1)])
    q, tables = case.q.to(device), case.tables.to(device)
    caches = case.k_cache.to(device), case.v_cache.to(device)
    lengths = torch.tensor([601, 4, 91], dtype=torch.int32, device=device)
    together, alone = torch.empty_like(q), torch.empty_like(q[:1])
    attend_decodes(q, *caches, together, tables, lengths, ScoreRules(0.25))
    attend_decodes(q[2:].clone(), *caches, alone, tables[2:], lengths[2:], ScoreRules(0.25))
    assert torch.equal(together[2:], alone)


def test_pages_of_fp8_are_read_with_their_scales(device: torch.device) -> None:
    from quire_engine.kernels.gpu.attention import ScoreRules, attend_decodes

    case = Case([(40, 1)])
    k_scale, v_scale = 0.02, 0.5
    eighths = [
        (cache / by).nan_to_num().clamp(-448, 448).to(torch.float8_e4m3fn)
        for cache, by in ((case.k_cache, k_scale), (case.v_cache, v_scale))
    ]
    read = [eighth.float() * by for eighth, by in zip(eighths, (k_scale, v_scale), strict=True)]
    case.of_sequences = [tuple(cache[case.tables[0]].flatten(0, 1)[:41] for cache in read)]
    q, lengths = case.q.to(device), torch.tensor([41], dtype=torch.int32, device=device)
    out = torch.empty_like(q)
    on_device = [eighth.to(device) for eighth in eighths]
    rules = ScoreRules(0.25, k_scale=k_scale, v_scale=v_scale)
    attend_decodes(q, *on_device, out, case.tables.to(device), lengths, rules)
    torch.testing.assert_close(out.cpu().double(), case.expected(0.25), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "head_dim", "group"),
    [(torch.float32, 64, 1), (torch.bfloat16, 128, 4), (torch.bfloat16, 80, 7), (torch.float16, 256, 2)],
    ids=str,
)
def test_shapes_of_real_models_are_attended_to(
    device: torch.device, dtype: torch.dtype, head_dim: int, group: int
) -> None:
    sequences = [(0, 300), (130, 70), (511, 1), (0, 1)]
    case = Case(sequences, group=group, num_kv_heads=2, head_dim=head_dim, page=16, dtype=dtype)
    check_spans(case, device)
    check_decodes(Case([(511, 1), (0, 1), (2000, 1)], group, 2, head_dim, 16, dtype=dtype), device)
