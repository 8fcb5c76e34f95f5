"""Products of tiles and rounding, which Triton's interpreter gets wrong for bfloat16: it takes it for integers."""

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
    return x.to(dtype)
