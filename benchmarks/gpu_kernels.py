"""What each kernel for GPUs takes beside torch, what it should take by the bytes it moves, and whether it is right.

To import it imports Triton: TRITON_INTERPRET has to be set before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch.nn import functional

from quire_engine.attention.context import AttentionContext, PrefillSpan, attention_context
from quire_engine.attention.latent_attention import LatentAttention
from quire_engine.attention.paged_attention import PagedAttention
from quire_engine.kernels import choice
from quire_engine.kernels.gpu.fp8 import FP8, multiply_blocks, multiply_rows, round_tokens
from quire_engine.kernels.gpu.gate import gate_and_multiply
from quire_engine.kernels.gpu.norm import add_and_rms_norm
from quire_engine.kernels.gpu.packed import PackedWeight, multiply_packed
from quire_engine.kernels.gpu.rotary import rotate_and_write
from quire_engine.kernels.gpu.sampling import draw_within as draw_within_by_kernel
from quire_engine.layers.experts import Experts
from quire_engine.layers.linear import Linear, LinearMethod, create_weights, finish_weights
from quire_engine.layers.norm import RMSNorm
from quire_engine.layers.rotary import rotate
from quire_engine.memory_plan.quantization import Awq, Fp8
from quire_engine.quantization.awq import AwqLinear
from quire_engine.quantization.fp8 import Fp8Linear
from quire_engine.quantization.int8 import Int8WhileLoading
from quire_engine.quantization.words import unpack
from quire_engine.sampling.sampler import SamplingBatch, draw_within

HEADS, KV_HEADS, HEAD_DIM, HIDDEN, INNER, VOCAB, PAGE = 32, 8, 128, 4096, 14336, 128256, 16
"""Those of Llama 3.1 8B."""

Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Case:
    """One kernel at one size. Both ways give the same tensors; `bytes` are what has to be read and written at least."""

    name: str
    ours: Callable[[], Tensors]
    torch: Callable[[], Tensors]
    bytes: int
    flops: int = 0


@dataclass(frozen=True)
class Roofline:
    """What this device was measured to do: bytes a second of a copy, and operations a second of a product."""

    bandwidth: float
    flops: float

    def seconds(self, case: Case) -> float:
        return max(case.bytes / self.bandwidth, case.flops / self.flops)


def measure_roofline(device: torch.device, dtype: torch.dtype, *, tiny: bool) -> Roofline:
    """By a copy of 4 GiB and a product of 8192 x 8192."""
    size, side = (1 << 20, 128) if tiny else (4 << 30, 8192)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    a = torch.randn(side, side, device=device).to(dtype)
    return Roofline(
        2 * size / seconds_of(lambda: target.copy_(source), device), 2 * side**3 / seconds_of(lambda: a @ a, device)
    )


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """The median time of a run: on a GPU with cold caches, by Triton's own measure."""
    if device.type == "cuda":
        from triton.testing import do_bench

        return float(do_bench(run, return_mode="median")) / 1000
    run()
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def figures_of(case: Case, roofline: Roofline, device: torch.device) -> dict[str, Any]:
    """Times in microseconds, the share of the roofline, and the greatest difference from torch's result."""
    found, wanted = case.ours(), case.torch()
    difference = max(float((a.double() - b.double()).abs().max()) for a, b in zip(found, wanted, strict=True))
    near = all(torch.allclose(a.double(), b.double(), atol=4e-2, rtol=4e-2) for a, b in zip(found, wanted, strict=True))
    ours, by_torch = seconds_of(case.ours, device), seconds_of(case.torch, device)
    return {
        "us": round(ours * 1e6, 1),
        "torch_us": round(by_torch * 1e6, 1),
        "share_of_roofline": round(roofline.seconds(case) / ours, 3),
        "greatest_difference": difference,
        "right": near,
    }


def cases(device: torch.device, dtype: torch.dtype, *, tiny: bool) -> Iterator[Case]:
    """All kernels, at a few sizes; with `tiny` at one that the interpreter gets through."""
    torch.manual_seed(0)
    decodes, prompts = [(2, 70)], [(9, 20)]
    if not tiny:
        decodes, prompts = [(1, 1000), (1, 32000), (64, 1500), (256, 1500)], [(0, 2048), (6144, 2048)]
    for count, length in decodes:
        yield _attention(device, dtype, [(length - 1, 1)] * count, f"decode, {count} x {length}", tiny=tiny)
    for before, count in prompts:
        yield _attention(device, dtype, [(before, count)], f"prompt, {count} after {before}", tiny=tiny)
    for count, length in decodes:
        yield _latent_attention(device, dtype, [(length - 1, 1)] * count, f"decode, {count} x {length}", tiny=tiny)
    yield _latent_attention(device, dtype, prompts[-1:], "prompt, {1} after {0}".format(*prompts[-1]), tiny=tiny)
    for rows in (2,) if tiny else (1, 64, 4096):
        yield from _rows(device, dtype, rows, tiny=tiny)
    for rows in (2,) if tiny else (1, 16, 64, 512, 4096):
        yield _four_bits(device, dtype, rows, tiny=tiny)
        yield from _fp8(device, rows, tiny=tiny)
    for rows in (2,) if tiny else (1, 64, 4096):
        yield from _experts(device, dtype, rows, tiny=tiny)
    for rows in (2,) if tiny else (1, 64, 256):
        yield _sampling(device, rows, 300 if tiny else VOCAB)


def _attention(
    device: torch.device, dtype: torch.dtype, sequences: list[tuple[int, int]], name: str, *, tiny: bool
) -> Case:
    heads, kv_heads, dim = (4, 2, 16) if tiny else (HEADS, KV_HEADS, HEAD_DIM)
    num_blocks, context_of = _paged(sequences, device)
    caches = torch.randn(2, num_blocks, PAGE, kv_heads, dim, device=device).to(dtype)
    tokens = sum(count for _, count in sequences)
    q, k, v = (torch.randn(tokens, n, dim, device=device).to(dtype) for n in (heads, kv_heads, kv_heads))

    def way(by_kernels: bool) -> Callable[[], Tensors]:
        layer = PagedAttention(heads, kv_heads, dim)
        layer.bind(caches[0], caches[1], 1 << 15)
        if not by_kernels:
            layer.kernels = None
        context = context_of()

        def run() -> Tensors:
            with attention_context(context):
                return (layer(q, k, v),)

        return run

    size = 2 * (_keys_of(sequences) * kv_heads + tokens * heads) * dim * dtype.itemsize
    return Case(f"attention: {name}", way(True), way(False), size, 4 * _pairs_of(sequences) * heads * dim)


def _latent_attention(
    device: torch.device, dtype: torch.dtype, sequences: list[tuple[int, int]], name: str, *, tiny: bool
) -> Case:
    """With the projections into the latent space and out of it, of DeepSeek-V3's sizes."""
    heads, rank, rope, nope, value = (4, 32, 16, 16, 16) if tiny else (128, 512, 64, 128, 128)
    num_blocks, context_of = _paged(sequences, device)
    cache = torch.randn(num_blocks, PAGE, 1, rank + rope, device=device).to(dtype)
    tokens = sum(count for _, count in sequences)
    q, vectors = (
        torch.randn(tokens, n, size, device=device).to(dtype) for n, size in ((heads, nope + rope), (1, rank + rope))
    )
    keys, values = ((torch.randn(heads, n, rank, device=device) / rank**0.5).to(dtype) for n in (nope, value))

    def way(by_kernels: bool) -> Callable[[], Tensors]:
        layer = LatentAttention(heads, rank, rope, scale=(nope + rope) ** -0.5)
        layer.bind(cache, cache, 1 << 15)
        if not by_kernels:
            layer.latent_kernels = None
        context = context_of()

        def run() -> Tensors:
            with attention_context(context):
                return (layer.over_latents(q, vectors, keys, values),)

        return run

    size = (_keys_of(sequences) + tokens) * (rank + rope) + tokens * heads * (nope + rope + value)
    flops = _pairs_of(sequences) * (2 * rank + rope) + tokens * (nope + value) * rank
    size += keys.numel() + values.numel()
    return Case(f"latent attention: {name}", way(True), way(False), size * dtype.itemsize, 2 * heads * flops)


def _paged(sequences: list[tuple[int, int]], device: torch.device) -> tuple[int, Callable[[], AttentionContext]]:
    """Pages anywhere for sequences of (tokens before, tokens of this step), and what attention has to know of them."""
    lengths = [before + count for before, count in sequences]
    blocks = [-(-length // PAGE) for length in lengths]
    order = torch.split(torch.randperm(sum(blocks)), blocks)
    at = [torch.arange(before, before + count) for before, count in sequences]
    slots = torch.cat([table[p // PAGE] * PAGE + p % PAGE for table, p in zip(order, at, strict=True)]).to(device)
    decodes = sequences[0][1] == 1
    tables = torch.nn.utils.rnn.pad_sequence(list(order), batch_first=True).to(device)
    spans = [] if decodes else [PrefillSpan(0, len(slots), sequences[0][0], tables[0])]
    return sum(blocks), lambda: AttentionContext(
        slots, len(sequences) if decodes else 0, lengths if decodes else [], tables, spans
    )


def _keys_of(sequences: list[tuple[int, int]]) -> int:
    return sum(before + count for before, count in sequences)


def _pairs_of(sequences: list[tuple[int, int]]) -> int:
    """Of a query and a key that it sees."""
    return sum(count * before + count * (count + 1) // 2 for before, count in sequences)


def _rows(device: torch.device, dtype: torch.dtype, rows: int, *, tiny: bool) -> Iterator[Case]:
    hidden, inner, heads, kv_heads, dim = (64, 96, 4, 2, 16) if tiny else (HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM)
    x, more = (torch.randn(rows, hidden, device=device).to(dtype) for _ in range(2))
    norm = RMSNorm(hidden, 1e-5).to(device, dtype)
    norm.weight.data.normal_(1.0, 0.1)

    def added() -> Tensors:
        total = x + more
        return total, norm.by_torch(total)

    size = 4 * x.numel() * dtype.itemsize
    yield Case(f"add and norm: {rows}", lambda: add_and_rms_norm(x, more, norm.weight, 1e-5, offset=False), added, size)
    both = torch.randn(rows, 2 * inner, device=device).to(dtype)

    def gated() -> Tensors:
        left, right = both.chunk(2, dim=-1)
        return (functional.silu(left) * right,)

    size = 3 * rows * inner * dtype.itemsize
    yield Case(f"gate: {rows}", lambda: (gate_and_multiply(both, "silu"),), gated, size)

    qkv = torch.randn(rows, heads + 2 * kv_heads, dim, device=device).to(dtype)
    q, k, v = torch.split(qkv, [heads, kv_heads, kv_heads], dim=1)
    angles = torch.randn(rows, 1, dim // 2, device=device)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    slots = torch.randperm(-(-rows // PAGE) * PAGE)[:rows].to(device)
    caches = torch.zeros(2, 2, -(-rows // PAGE), PAGE, kv_heads, dim, device=device, dtype=dtype)

    def rotated() -> Tensors:
        caches[1, 0].flatten(0, 1).index_copy_(0, slots, rotate(k, cos, sin))
        caches[1, 1].flatten(0, 1).index_copy_(0, slots, v)
        return rotate(q, cos, sin), caches[1]

    def by_kernel() -> Tensors:
        out = rotate_and_write(q, k, v, cos, sin, slots, caches[0, 0], caches[0, 1], by_neighbours=False)
        return out, caches[0]

    yield Case(f"rotate and write: {rows}", by_kernel, rotated, 2 * qkv.numel() * dtype.itemsize)


def _four_bits(device: torch.device, dtype: torch.dtype, rows: int, *, tiny: bool) -> Case:
    """A linear of 4 bits in groups of 128, beside torch's product with the weight in the model's type."""
    inputs, outputs = (256, 64) if tiny else (HIDDEN, 2 * INNER)
    scales = torch.rand(outputs, inputs // 128, device=device).to(torch.float16) / 256
    words, zeros = (
        torch.randint(-(1 << 31), 1 << 31, size, device=device).to(torch.int32)
        for size in ((outputs, inputs // 8), (outputs // 8, inputs // 128))
    )
    weight = PackedWeight(words, zeros, scales, None, 4, zero_offset=0)
    above = unpack(words, 4).float().view(outputs, -1, 128)
    above -= unpack(zeros[..., None], 4).transpose(1, 2).flatten(0, 1).float()[..., None]
    plain = (above * scales.float()[..., None]).flatten(1).to(dtype)
    x = torch.randn(rows, inputs, device=device).to(dtype)
    return Case(
        f"linear of 4 bits: {rows}",
        lambda: (multiply_packed(x, weight, None),),
        lambda: (functional.linear(x, plain),),
        inputs * outputs // 2 + rows * (inputs + outputs) * dtype.itemsize,
        2 * rows * inputs * outputs,
    )


def _in_tuple(call: Callable[[], torch.Tensor]) -> tuple[torch.Tensor]:
    return (call(),)


def _fp8(device: torch.device, rows: int, *, tiny: bool) -> Iterator[Case]:
    """Linears of FP8, with scales of rows and of blocks, beside torch's product of the same numbers in bfloat16."""
    inputs, outputs = (256, 128) if tiny else (HIDDEN, 2 * INNER)
    x = torch.randn(rows, inputs, device=device).to(torch.bfloat16)
    weight = torch.randn(outputs, inputs, device=device).to(FP8)
    of_rows = torch.rand(outputs, 1, device=device) / 64
    of_blocks = torch.rand(outputs // 128, inputs // 128, device=device) / 64
    block_of = torch.arange(outputs, device=device, dtype=torch.int32) // 128
    wide = of_blocks.repeat_interleave(128, 0).repeat_interleave(128, 1)
    ways: dict[str, tuple[Callable[[], torch.Tensor], torch.Tensor, int]] = {
        "rows": (lambda: multiply_rows(x, weight, of_rows, None), of_rows, inputs),
        "blocks": (lambda: multiply_blocks(x, weight, of_blocks, block_of, 128, 0, None), wide, 128),
    }
    for name, (ours, scales, group) in ways.items():
        plain = (weight.float() * scales).to(x.dtype)
        numbers, by = round_tokens(x, group)
        near = (numbers.float() * by.repeat_interleave(group, 1)).to(x.dtype)
        yield Case(
            f"linear of FP8, scales of {name}: {rows}",
            partial(_in_tuple, ours),
            partial(_in_tuple, partial(functional.linear, near, plain)),
            inputs * outputs + rows * (inputs + outputs) * x.dtype.itemsize,
            rows * inputs * outputs,  # tensor cores multiply FP8 twice as fast as bfloat16
        )


def _experts(device: torch.device, dtype: torch.dtype, num_tokens: int, *, tiny: bool) -> Iterator[Case]:
    """Those of Qwen3-30B-A3B: quantized ones at once, beside torch, which turns one after the other into floats."""
    count, hidden, inner, top_k = (4, 256, 128, 2) if tiny else (128, 2048, 768, 8)
    x = torch.randn(num_tokens, hidden, device=device).to(dtype)
    weights = torch.full((num_tokens, top_k), 1 / top_k, device=device)
    chosen = torch.rand(num_tokens, count, device=device).argsort(dim=1)[:, :top_k]
    used, each = len(set(chosen.flatten().tolist())), 3 * hidden * inner
    ways: dict[str, tuple[Callable[[], LinearMethod], float]] = {
        "4 bits": (lambda: AwqLinear(Awq(group_size=128), "layer"), 0.5),
        "FP8, scales of blocks": (lambda: Fp8Linear(Fp8(block=(128, 128), scale="weight_scale")), 1),
        "int8": (Int8WhileLoading, 1),
    }
    for name, (method, size) in ways.items():
        experts = _drawn_experts(method, device, count, hidden, inner)

        def by_torch(experts: Experts = experts) -> Tensors:
            with _torch_alone():
                return (experts(x, weights, chosen),)

        yield Case(
            f"experts of {name}: {num_tokens}",
            partial(_in_tuple, partial(experts, x, weights, chosen)),
            by_torch,
            int(used * each * size) + 2 * x.numel() * dtype.itemsize,
            2 * num_tokens * top_k * each,
        )


def _drawn_experts(
    method: Callable[[], LinearMethod], device: torch.device, count: int, hidden: int, inner: int
) -> Experts:
    with device:
        experts = Experts(count, hidden, inner, functional.silu)
        create_weights(experts, lambda path, layer: method())
    generator = torch.Generator(device)
    for layer in experts.modules():
        if isinstance(layer, Linear):
            layer.method.draw(layer, generator)
    with _torch_alone():  # activations stay as they are
        finish_weights(experts)
    experts.finish()
    return experts


@contextmanager
def _torch_alone() -> Iterator[None]:
    with patch.multiple(choice, has_triton=lambda: False, interpreted_on_cpu=False):
        yield


def _sampling(device: torch.device, rows: int, vocab_size: int) -> Case:
    probabilities = torch.softmax(torch.randn(rows, vocab_size, device=device) * 2, -1)

    def filled(value: float, dtype: torch.dtype) -> torch.Tensor:
        return torch.full((rows,), value, dtype=dtype, device=device)

    batch = SamplingBatch(
        greedy=filled(0, torch.bool),
        all_greedy=False,
        any_greedy=False,
        temperature=filled(1.0, torch.float32),
        top_k=filled(50, torch.int64),
        top_p=filled(0.9, torch.float32),
        min_p=None,
        uniform=torch.rand(rows, dtype=torch.float64, device=device),
    )
    return Case(
        f"draw: {rows}",
        lambda: (draw_within_by_kernel(probabilities, batch),),
        lambda: (draw_within(probabilities.clone(), batch),),
        probabilities.numel() * 4,
    )
