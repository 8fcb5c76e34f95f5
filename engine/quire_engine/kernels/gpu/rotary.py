"""The rotation of queries and keys, and the writing of keys and values to their pages, in one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from quire_engine.kernels.gpu.arithmetic import rounded


def rotate_and_write(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    slots: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    *,
    by_neighbours: bool,
) -> torch.Tensor:
    """The rotated queries. Rotated keys, and values, go to `slots` [num_tokens] int64 of the caches.

    q [num_tokens, num_heads, head_dim], k and v [num_tokens, num_kv_heads, head_dim], of which the last dimension lies
    together; cos and sin [num_tokens, 1, dim / 2]: the first `dim` features are rotated, pairs that are half of `dim`
    apart, or neighbours. Caches are [num_blocks, block_size, num_kv_heads, head_dim].
    """
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads, half = k.shape[1], cos.shape[-1]
    cos, sin = cos.contiguous(), sin.contiguous()
    out = q.new_empty(q.shape)
    _rotate_and_write[(num_tokens, num_kv_heads)](
        q,
        k,
        v,
        cos,
        sin,
        slots,
        out,
        k_cache,
        v_cache,
        q.stride(0),
        q.stride(1),
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        k_cache.stride(1),
        GROUP=num_heads // num_kv_heads,
        HEADS=triton.next_power_of_2(num_heads // num_kv_heads),
        HEAD_DIM=head_dim,
        BLOCK_D=triton.next_power_of_2(head_dim),
        HALF=half,
        BY_NEIGHBOURS=by_neighbours,
        num_warps=2,
    )
    return out


@triton.jit
def _rotate_and_write(
    q_all,
    k_all,
    v_all,
    cos_all,
    sin_all,
    slots,
    out,
    k_cache,
    v_cache,
    q_row,
    q_head,
    k_row,
    k_head,
    v_row,
    v_head,
    slot_stride,
    GROUP: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HALF: tl.constexpr,
    BY_NEIGHBOURS: tl.constexpr,
):
    token, kv_head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    features = tl.arange(0, BLOCK_D)
    inside = features < HEAD_DIM
    turned = features < 2 * HALF
    if BY_NEIGHBOURS:
        pair = features // 2
        first = features % 2 == 0
        other = tl.where(first, features + 1, features - 1)
    else:
        first = features < HALF
        pair = tl.where(first, features, features - HALF)
        other = tl.where(first, features + HALF, features - HALF)
    cos = tl.load(cos_all + token * HALF + pair, mask=turned, other=1.0).to(tl.float32)
    sin = tl.load(sin_all + token * HALF + pair, mask=turned, other=0.0).to(tl.float32)
    sin = tl.where(first, -sin, sin)

    heads = tl.arange(0, HEADS)
    there = (heads < GROUP)[:, None]
    of_heads = (kv_head * GROUP + heads)[:, None]
    q_at = q_all + token * q_row + of_heads * q_head
    q = tl.load(q_at + features[None, :], mask=there & inside[None, :], other=0.0).to(tl.float32)
    others = tl.load(q_at + other[None, :], mask=there & turned[None, :], other=0.0).to(tl.float32)
    to = out + (token * tl.num_programs(1) * GROUP + of_heads) * HEAD_DIM + features[None, :]
    q = q * cos[None, :] + others * sin[None, :]
    tl.store(to, rounded(q, out.dtype.element_ty), mask=there & inside[None, :])

    k_at = k_all + token * k_row + kv_head * k_head
    k = tl.load(k_at + features, mask=inside, other=0.0).to(tl.float32)
    k = k * cos + tl.load(k_at + other, mask=turned, other=0.0).to(tl.float32) * sin
    v = tl.load(v_all + token * v_row + kv_head * v_head + features, mask=inside, other=0.0).to(tl.float32)
    slot = tl.load(slots + token) * slot_stride + kv_head * HEAD_DIM + features
    tl.store(k_cache + slot, rounded(k, k_cache.dtype.element_ty), mask=inside)
    tl.store(v_cache + slot, rounded(v, v_cache.dtype.element_ty), mask=inside)
