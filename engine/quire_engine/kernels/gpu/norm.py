"""RMSNorm, with the addition before it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from quire_engine.kernels.gpu.arithmetic import rounded


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, *, offset: bool) -> torch.Tensor:
    """x / rms(x) * weight over the last dimension, [..., size] -> the same shape and dtype.

    It is rounded before it is multiplied; with `offset` it is multiplied by 1 + weight in float32 and rounded then.
    """
    x = x.contiguous()
    out = torch.empty_like(x)
    _launch(x, x, x, out, weight, eps, offset, added=False)
    return out


def add_and_rms_norm(
    x: torch.Tensor, more: torch.Tensor, weight: torch.Tensor, eps: float, *, offset: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """x + more, and its `rms_norm`: both are read once."""
    x, more = x.contiguous(), more.contiguous()
    total, out = torch.empty_like(x), torch.empty_like(x)
    _launch(x, more, total, out, weight, eps, offset, added=True)
    return total, out


def _launch(
    x: torch.Tensor,
    more: torch.Tensor,
    total: torch.Tensor,
    out: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    offset: bool,
    *,
    added: bool,
) -> None:
    size = x.shape[-1]
    block = triton.next_power_of_2(size)
    _norm_rows[(x.numel() // size,)](
        x,
        more,
        total,
        out,
        weight,
        eps,
        SIZE=size,
        BLOCK=block,
        ADDED=added,
        OFFSET=offset,
        num_warps=max(1, min(16, block // 512)),
    )


@triton.jit
def _norm_rows(
    x_all,
    more_all,
    total_all,
    out_all,
    weight,
    eps,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    ADDED: tl.constexpr,
    OFFSET: tl.constexpr,
):
    columns = tl.arange(0, BLOCK)
    inside = columns < SIZE
    at = tl.program_id(0).to(tl.int64) * SIZE + columns
    dtype = out_all.dtype.element_ty
    x = tl.load(x_all + at, mask=inside, other=0.0).to(tl.float32)
    if ADDED:
        x += tl.load(more_all + at, mask=inside, other=0.0).to(tl.float32)
        total = rounded(x, dtype)
        tl.store(total_all + at, total, mask=inside)
        x = total.to(tl.float32)
    x *= tl.rsqrt(tl.sum(x * x, axis=0) / SIZE + eps)
    by = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    out = x * (1.0 + by) if OFFSET else rounded(x, dtype).to(tl.float32) * by
    tl.store(out_all + at, rounded(out, dtype), mask=inside)
