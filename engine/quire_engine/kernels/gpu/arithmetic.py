"""Products of tiles and rounding. Triton's interpreter takes bfloat16 for integers, and rounds it and e4m3 wrongly."""

from __future__ import annotations

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on"))


@triton.jit
def product(a, b):
    """[rows, inner] by [inner, columns] -> [rows, columns] float32; float32 is multiplied as such, not as TF32."""
    if INTERPRETED:  # a product of two is exact in float32
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """float32 as `dtype`, to the nearest, of two as near to the even one."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        x = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
    if INTERPRETED and dtype == tl.float8e4nv:
        bits = x.to(tl.int32, bitcast=True)
        normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) & -1048576).to(tl.float32, bitcast=True)
        # Below 2^-6 numbers are multiples of 2^-9, as those of float32 are about 3 * 2^13.
        x = tl.where(tl.abs(x) < 0.015625, (x + 24576.0) - 24576.0, normal)
    return x.to(dtype)
