"""Kernels that go over a batch once, against the layers that torch computes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from quire_engine.layers import rotary
from quire_engine.layers.norm import OffsetRMSNorm, RMSNorm
from tests.engine.kernels.gpu.paged_cases import TOLERANCES

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
# A float16 or bfloat16 may come out as its neighbour, where a sum in another order rounds the other way.
NEAR = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def drawn(seed: int, dtype: torch.dtype, *size: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert found.dtype == wanted.dtype
    near = NEAR[found.dtype]
    torch.testing.assert_close(found.cpu(), wanted, atol=near, rtol=near)


@settings(deadline=None, max_examples=25)
@given(
    rows=st.integers(1, 5),
    size=st.integers(1, 300),
    dtype=DTYPES,
    kind=st.sampled_from([RMSNorm, OffsetRMSNorm]),
    seed=st.integers(0, 999),
)
def test_a_sum_and_its_norm_are_those_of_torch(
    device: torch.device, rows: int, size: int, dtype: torch.dtype, kind: type[RMSNorm], seed: int
) -> None:
    from quire_engine.kernels.gpu.norm import add_and_rms_norm, rms_norm

    x, more, norm = drawn(seed, dtype, rows, size), drawn(seed + 1, dtype, rows, size), kind(size, 1e-5)
    norm.weight.data = drawn(seed + 2, dtype, size)
    offset, weight = kind is OffsetRMSNorm, norm.weight.data.to(device)
    total, normed = add_and_rms_norm(x.to(device), more.to(device), weight, 1e-5, offset=offset)
    assert torch.equal(total.cpu(), x + more)
    close(normed, norm(x + more))
    close(rms_norm(x.to(device), weight, 1e-5, offset=offset), norm(x))


def test_a_norm_takes_views_of_more_dimensions(device: torch.device) -> None:
    from quire_engine.kernels.gpu.norm import rms_norm

    x, norm = drawn(0, torch.float32, 3, 40), RMSNorm(8, 1e-6)
    norm.weight.data = drawn(1, torch.float32, 8)
    view = x[:, 8:24].unflatten(-1, (2, 8))
    close(rms_norm(view.to(device), norm.weight.data.to(device), 1e-6, offset=False), norm(view))


@settings(deadline=None, max_examples=25)
@given(
    rows=st.integers(1, 4),
    size=st.sampled_from([1, 7, 64, 1100]),
    dtype=DTYPES,
    gate=st.sampled_from(["silu", "gelu", "gelu_tanh"]),
    seed=st.integers(0, 999),
)
def test_a_gated_half_times_the_other_is_that_of_torch(
    device: torch.device, rows: int, size: int, dtype: torch.dtype, gate: str, seed: int
) -> None:
    from quire_engine.kernels.gpu.gate import gate_and_multiply

    both = drawn(seed, dtype, rows, 2 * size) * 4
    left, right = both.chunk(2, dim=-1)
    activated = (
        functional.silu(left)
        if gate == "silu"
        else functional.gelu(left, approximate="tanh" if gate == "gelu_tanh" else "none")
    )
    found = gate_and_multiply(both.to(device), gate)  # type: ignore[arg-type]  # drawn, so text to mypy
    wanted, near = activated * right, NEAR[dtype]
    torch.testing.assert_close(found.cpu(), wanted, atol=4 * near, rtol=near)


@settings(deadline=None, max_examples=25)
@given(
    num_tokens=st.integers(1, 5),
    group=st.sampled_from([1, 2, 3, 7]),
    num_kv_heads=st.integers(1, 2),
    head_dim=st.sampled_from([8, 20, 64]),
    partial=st.booleans(),
    by_neighbours=st.booleans(),
    dtype=DTYPES,
    seed=st.integers(0, 999),
)
def test_rotated_queries_come_back_and_rotated_keys_and_values_are_in_their_pages(
    device: torch.device,
    num_tokens: int,
    group: int,
    num_kv_heads: int,
    head_dim: int,
    partial: bool,
    by_neighbours: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    from quire_engine.kernels.gpu.rotary import rotate_and_write

    heads, dim = group * num_kv_heads, head_dim // 2 if partial else head_dim
    qkv = drawn(seed, dtype, num_tokens, heads + 2 * num_kv_heads, head_dim)
    angles = drawn(seed + 1, torch.float32, num_tokens, 1, dim // 2) * 9
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    slots = torch.randperm(24, generator=torch.Generator().manual_seed(seed))[:num_tokens]
    caches = [torch.zeros(3, 8, num_kv_heads, head_dim, dtype=dtype, device=device) for _ in range(2)]
    q, k, v = qkv.to(device).split((heads, num_kv_heads, num_kv_heads), dim=1)
    found = rotate_and_write(
        q, k, v, cos.to(device), sin.to(device), slots.to(device), *caches, by_neighbours=by_neighbours
    )
    turn = rotary.rotate_first_neighbours if by_neighbours else rotary.rotate_first
    # In float64: the kernel rounds once, and torch several times.
    q, k, v = (part.cpu() for part in (q, k, v))
    wanted_q, wanted_k = (turn(part.double(), cos.double(), sin.double()) for part in (q, k))
    near = TOLERANCES[dtype]
    torch.testing.assert_close(found.cpu().double(), wanted_q, atol=near, rtol=near)
    k_found, v_found = (cache.cpu().flatten(0, 1) for cache in caches)
    torch.testing.assert_close(k_found[slots].double(), wanted_k, atol=near, rtol=near)
    assert torch.equal(v_found[slots], v)
    others = [slot for slot in range(24) if slot not in slots.tolist()]
    assert not k_found[others].any()
    assert not v_found[others].any()
