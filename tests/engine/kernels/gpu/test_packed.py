"""Layers of a few bits give by the kernel what torch gives, which unpacks their weights first."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire_engine.kernels import choice
from quire_engine.layers.linear import ColumnLinear, Rows
from quire_engine.memory_plan.quantization import Awq, Gptq
from quire_engine.quantization.awq import AwqLinear
from quire_engine.quantization.gptq import GptqLinear
from quire_engine.quantization.grouped import GroupedLinear
from tests.engine.kernels.gpu.test_elementwise import close, drawn
from tests.engine.kernels.gpu.test_model import GREEDY, NEW_TOKENS, answers_of
from tests.engine.models.checkpoints import FAMILIES, greedy_reference, make_model, mixed_prompts
from tests.engine.quantization.formats import FORMATS, save_quantized

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


def layer_of(
    method: GroupedLinear, inputs: int, outputs: list[int], device: torch.device, seed: int, *, shuffled: bool = False
) -> ColumnLinear:
    """Of random numbers, zero points and scales; weights are of a size that keeps results about 1."""
    generator = torch.Generator().manual_seed(seed)
    layer = ColumnLinear(inputs, {f"part{i}": Rows(size) for i, size in enumerate(outputs)})
    layer.create(method)
    for name in ("qweight", "qzeros"):
        layer.get_parameter(name).random_(-(1 << 31), 1 << 31, generator=generator)
    scales = layer.get_parameter("scales")
    scales.copy_((torch.rand(scales.shape, generator=generator) + 0.5) / (2**method.bits * inputs**0.5))
    if shuffled:
        group_of = layer.get_parameter("g_idx")
        for row in group_of:
            row.copy_(row[torch.randperm(inputs, generator=generator)])
    method.finish(layer)
    return layer.to(device)


def by_both(layer: ColumnLinear, x: torch.Tensor, bias: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    with patch.object(choice, "interpreted_on_cpu", True):
        found: torch.Tensor = layer.method.multiply(layer, x, bias)
    with patch.object(choice, "has_triton", lambda: False):
        return found, layer.method.multiply(layer, x, bias).cpu()


@settings(deadline=None, max_examples=30)
@given(
    rows=st.sampled_from([1, 2, 17, 65, 130]),
    groups=st.sampled_from([(32, 2), (64, 3), (128, 1), (128, 2), (16, 3), (24, 2), (None, 104)]),
    outputs=st.sampled_from([[8], [72], [64, 8, 40]]),
    bits=st.sampled_from([2, 4, 8]),
    version=st.sampled_from([0, 1]),
    shuffled=st.booleans(),
    biased=st.booleans(),
    dtype=DTYPES,
    seed=st.integers(0, 99),
)
def test_weights_packed_along_inputs(
    device: torch.device,
    rows: int,
    groups: tuple[int | None, int],
    outputs: list[int],
    bits: int,
    version: int,
    shuffled: bool,
    biased: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    size, count = groups
    inputs, outputs = (size or 1) * count // 16 * 16, [n * 4 // bits for n in outputs] if bits == 2 else outputs
    method = GptqLinear(Gptq(bits=bits, group_size=size, act_order=shuffled, zero_offset=version), "layer")
    layer = layer_of(method, inputs, outputs, device, seed, shuffled=shuffled)
    x = drawn(seed, dtype, rows, inputs).to(device)
    close(*by_both(layer, x, drawn(seed + 1, dtype, sum(outputs)).to(device) if biased else None))


@settings(deadline=None, max_examples=10)
@given(
    rows=st.sampled_from([0, 1, 5, 40]),
    size=st.sampled_from([32, 64, 128, None]),
    outputs=st.sampled_from([[16], [96, 32]]),
    dtype=DTYPES,
    seed=st.integers(0, 99),
)
def test_weights_packed_along_outputs(
    device: torch.device, rows: int, size: int | None, outputs: list[int], dtype: torch.dtype, seed: int
) -> None:
    layer = layer_of(AwqLinear(Awq(group_size=size), "layer"), 256, outputs, device, seed)
    close(*by_both(layer, drawn(seed, dtype, 1, rows, 256).to(device), None))


def test_inputs_that_are_shared_out_among_programs_are_added_up(device: torch.device) -> None:
    layer = layer_of(AwqLinear(Awq(group_size=128), "layer"), 2048, [40], device, 3)
    bias = drawn(4, torch.float32, 40).to(device)
    with patch("quire_engine.kernels.gpu.shares._join_shares") as join:
        by_both(layer, drawn(3, torch.float32, 2, 2048).to(device), bias)
        assert join.__getitem__.called
    close(*by_both(layer, drawn(3, torch.float32, 2, 2048).to(device), bias))


@pytest.mark.parametrize("form", ["awq, groups of 32", "gptq, 4 bits, act-order, with zero points, version 2"])
def test_a_model_answers_as_transformers_does_with_the_weights_that_are_meant(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    model = make_model(*(FAMILIES["qwen2"][0], FAMILIES["qwen2"][1]()))
    save_quantized(model, tmp_path, FORMATS[form])
    monkeypatch.setattr(choice, "interpreted_on_cpu", True)
    prompts = mixed_prompts(2, 16)
    assert answers_of(tmp_path, device, prompts, GREEDY) == greedy_reference(model, prompts, NEW_TOKENS)
