"""Compiles the kernels for Hopper as they are launched for a model's shapes. It needs no GPU.

A program of its own, as TRITON_INTERPRET must not be set. Prints how much shared memory each takes, in bytes.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import triton
from triton._C.libtriton import native_specialize_impl
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.compiler import ASTSource

from quire_engine.kernels.gpu import attention, experts, fp8, gate, latent, norm, packed, rotary, sampling, shares
from quire_engine.sampling.sampler import SamplingBatch

HOPPER = GPUTarget("cuda", 90, 32)
KERNELS = {
    attention: ("_attend_spans", "_attend_splits", "_join_splits"),
    experts: ("_multiply",),
    gate: ("_gate_and_multiply",),
    latent: ("_attend_latent_chunks", "_attend_latent_splits"),
    norm: ("_norm_rows",),
    fp8: ("_round_tokens", "_multiply_blocks"),
    packed: ("_multiply_packed",),
    rotary: ("_rotate_and_write",),
    sampling: ("_draw_within",),
    shares: ("_join_shares",),
}


class Compiled:
    """Takes the place of a kernel: compiles it for what it is launched with.

    It is specialised as by a launch: a 1 is a constant, and what divides by 16 is known to.
    """

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*operands: Any, num_warps: int = 4, num_stages: int = 3, **constants: Any) -> None:
            names = self.kernel.arg_names
            signature = dict.fromkeys(names, "constexpr")
            values, attributes = dict(constants), {}
            for name, operand in zip(names, operands, strict=False):
                signature[name], divides = native_specialize_impl(CUDABackend, operand, False, True, True)
                if signature[name] == "constexpr":
                    values[name] = operand
                elif divides:
                    attributes[(names.index(name),)] = CUDABackend.parse_attr(divides)
            assert attributes, "nothing divides by 16: these are not a model's shapes"
            source = ASTSource(self.kernel, signature, {(names.index(n),): v for n, v in values.items()}, attributes)
            options = {"num_warps": num_warps, "num_stages": num_stages}
            made = triton.compile(source, target=HOPPER, options=options)
            assert "cubin" in made.asm
            sys.stdout.write(f"{self.kernel.__name__} {made.metadata.shared}\n")

        return launch


def empty(*size: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(*size, dtype=dtype, device="meta")


def attend(dtype: torch.dtype, head_dim: int, group: int, cached: torch.dtype | None = None, **rules: Any) -> None:
    q, out = (empty(64, 8 * group, head_dim, dtype=dtype) for _ in range(2))
    cache = empty(10, 16, 8, head_dim, dtype=cached or dtype)
    tables, lengths = empty(64, 10, dtype=torch.int64), empty(64, dtype=torch.int32)
    spans = attention.Spans(tables, empty(64, 3, dtype=torch.int32), empty(9, 2, dtype=torch.int32))
    attention.attend(q, cache, cache, out, spans, attention.ScoreRules(0.1, **rules))
    attention.attend_decodes(q, cache, cache, out, tables, lengths, attention.ScoreRules(0.1, **rules))


def attend_latents(dtype: torch.dtype, heads: int) -> None:
    """Of DeepSeek-V3's sizes, with so many heads of a rank."""
    q, out = empty(64, heads, 576, dtype=dtype), empty(64, heads, 512, dtype=dtype)
    cache, tables = empty(10, 16, 1, 576, dtype=dtype), empty(64, 16, dtype=torch.int64)
    spans = attention.Spans(tables, empty(64, 3, dtype=torch.int32), empty(9, 2, dtype=torch.int32))
    latent.attend_chunks(q, cache, out, spans, 0.1)
    latent.attend_decodes(q, cache, out, tables, empty(64, dtype=torch.int32), 0.1)


def multiply_by_quantized_experts(dtype: torch.dtype, rows: int) -> None:
    """Of DeepSeek-V3's sizes, on one of 8 GPUs."""
    of_tiles = empty(40, dtype=torch.int64)
    routes = experts.Routes(empty(40 * rows, dtype=torch.int64), of_tiles, rows, 8)
    x, numbers = empty(64, 7168, dtype=dtype), empty(32, 512, 7168, dtype=fp8.FP8)
    float32, int32 = torch.float32, torch.int32
    weights: list[experts.ExpertWeight] = [
        fp8.ScaledWeight(numbers, empty(32, 4, 56, dtype=float32), empty(512, dtype=int32), 128),
        fp8.ScaledWeight(numbers, empty(32, 512, 1, dtype=float32), empty(512, dtype=int32), 7168),
        packed.PackedWeight.of_bytes(empty(32, 512, 7168, dtype=torch.int8), empty(32, 512, 1, dtype=float32)),
    ]
    for bits, groups in ((4, 56), (4, 224), (8, 56)):
        sizes = (32, 512, 7168 * bits // 32), (32, 512 * bits // 32, groups)
        words, zeros = (empty(*size, dtype=int32) for size in sizes)
        scales = empty(32, 512, groups, dtype=torch.float16)
        weights.append(packed.PackedWeight(words, zeros, scales, None, bits, zero_offset=1))
    for weight in weights:
        experts.multiply(x, weight, routes, of_tokens=True)


def main() -> None:
    for module, names in KERNELS.items():
        for name in names:
            setattr(module, name, Compiled(getattr(module, name)))
    bfloat16 = torch.bfloat16
    attend(bfloat16, 128, 4)
    attend(torch.float32, 128, 4)
    attend(bfloat16, 256, 2, window=1024, softcap=50.0)
    attend(torch.float16, 64, 1, slopes=empty(8, dtype=torch.float32))
    attend(bfloat16, 128, 8, cached=torch.float8_e4m3fn)
    for heads in (128, 32, 16):
        attend_latents(bfloat16, heads)
    attend_latents(torch.float32, 16)
    x, weight = empty(64, 4096, dtype=bfloat16), empty(4096, dtype=bfloat16)
    norm.add_and_rms_norm(x, x, weight, 1e-5, offset=False)
    norm.rms_norm(x, weight, 1e-5, offset=True)
    for kind in ("silu", "gelu", "gelu_tanh"):
        gate.gate_and_multiply(x, kind)  # type: ignore[arg-type]  # a loop over literals gives text
    q, k, angles = (empty(64, heads, size, dtype=bfloat16) for heads, size in ((32, 128), (8, 128), (1, 64)))
    slots, cache = empty(64, dtype=torch.int64), empty(10, 16, 8, 128, dtype=bfloat16)
    for by_neighbours in (False, True):
        rotary.rotate_and_write(q, k, k, angles, angles, slots, cache, cache, by_neighbours=by_neighbours)
    ones, flags = empty(64, dtype=torch.float32), empty(64, dtype=torch.bool)
    counts, uniform = empty(64, dtype=torch.int64), empty(64, dtype=torch.float64)
    batch = SamplingBatch(flags, False, False, ones, counts, ones, ones, uniform)
    sampling.draw_within(empty(64, 128256, dtype=torch.float32), batch)
    for dtype in (bfloat16, torch.float32):
        pairs, of_tiles = empty(640, dtype=torch.int64), empty(40, dtype=torch.int64)
        for rows in (16, 64):
            routes = experts.Routes(pairs, of_tiles, rows, 2)
            experts.multiply(empty(64, 4096, dtype=dtype), empty(8, 14336, 4096, dtype=dtype), routes, of_tokens=True)
    for dtype, rows in ((bfloat16, 16), (bfloat16, 64), (torch.float32, 16)):
        multiply_by_quantized_experts(dtype, rows)
    for bits, groups, shuffled, dtype in (
        (4, 32, False, bfloat16),
        (4, 32, True, bfloat16),
        (4, 128, False, torch.float16),
        (8, 1, False, bfloat16),
        (2, 64, False, torch.float32),
    ):
        weight = packed.PackedWeight(
            empty(14336, 4096 * bits // 32, dtype=torch.int32),
            empty(14336 * bits // 32, groups, dtype=torch.int32),
            empty(14336, groups, dtype=torch.float32 if dtype == torch.float32 else torch.float16),
            empty(4096, dtype=torch.int32) if shuffled else None,
            bits,
            zero_offset=1,
        )
        for rows in (1, 64, 4096):
            packed.multiply_packed(empty(rows, 4096, dtype=dtype), weight, empty(14336, dtype=dtype))
    eight_bits = packed.PackedWeight.of_bytes(
        empty(14336, 4096, dtype=torch.int8), empty(14336, 1, dtype=torch.float32)
    )
    packed.multiply_packed(x, eight_bits, None)
    narrow = packed.PackedWeight(
        *(empty(*size, dtype=torch.int32) for size in ((1024, 512), (128, 32))),
        empty(1024, 32, dtype=torch.float16),
        None,
        4,
        zero_offset=0,
    )
    packed.multiply_packed(empty(16, 4096, dtype=bfloat16), narrow, None)
    for inputs in (4096, 28672):
        fp8.round_tokens(empty(64, inputs, dtype=bfloat16))
    for rows, before in ((1, 0), (64, 0), (4096, 0), (64, 64)):
        weight, scales = empty(1536, 7168, dtype=fp8.FP8), empty(12, 57, dtype=torch.float32)
        of_rows = empty(1536, dtype=torch.int32)
        fp8.multiply_blocks(empty(rows, 7168, dtype=bfloat16), weight, scales, of_rows, 128, before, None)


if __name__ == "__main__":
    main()
