"""Layers of FP8 multiply FP8 by FP8: what they give is the product of the rounded numbers, times their scales."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire_engine.distributed.ranks import TensorRanks, build_for
from quire_engine.kernels import choice
from quire_engine.layers.linear import ColumnLinear, Linear, RowLinear, Rows
from quire_engine.memory_plan.quantization import Fp8
from quire_engine.quantization.fp8 import Fp8Linear
from quire_engine.quantization.int8 import Int8WhileLoading
from tests.engine.kernels.gpu.test_elementwise import close, drawn
from tests.engine.models.checkpoints import FAMILIES, make_model
from tests.engine.quantization.formats import FORMATS, save_quantized
from tests.engine.quantization.test_quantized_models import answer, build

pytestmark = pytest.mark.usefixtures("one_thread")

FP8 = torch.float8_e4m3fn


def as_rounded(x: torch.Tensor, group: int) -> torch.Tensor:
    """x [rows, inputs] by way of e4m3, of each `group` inputs the largest as 448, in float64."""
    parts = []
    for part in x.float().split(group, dim=1):
        scale = part.abs().amax(1, keepdim=True).clamp_min(1e-30) / 448
        parts.append((part / scale).to(FP8).double() * scale.double())
    return torch.cat(parts, dim=1)


def filled(layer: Linear, method: Fp8Linear, device: torch.device, seed: int) -> Linear:
    generator = torch.Generator().manual_seed(seed)
    layer.create(method)
    layer.to(device)
    method.draw(layer, generator)
    scale = layer.get_parameter("weight_scale")
    scale.copy_((torch.rand(scale.shape, generator=generator) + 0.5) / layer.in_features**0.5)
    with patch.object(choice, "interpreted_on_cpu", True):
        method.finish(layer)
    return layer


def meant(layer: Linear) -> torch.Tensor:
    """The layer's weight, as torch's way undoes it: [outputs, inputs] float64."""
    method = layer.method
    assert isinstance(method, Fp8Linear)
    parts = (rows_of(slice(0, at.stop - at.start)) for at, rows_of in method._parts(layer, torch.float32))
    return torch.cat(list(parts)).double().cpu()


@settings(deadline=None, max_examples=25)
@given(
    rows=st.integers(0, 5),
    inputs=st.integers(1, 300),
    group=st.sampled_from([None, 16, 128]),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
    size=st.sampled_from([1e-20, 1.0, 1e20]),
    seed=st.integers(0, 99),
)
def test_tokens_are_rounded_to_the_nearest_by_their_own_range(
    device: torch.device, rows: int, inputs: int, group: int | None, dtype: torch.dtype, size: float, seed: int
) -> None:
    from quire_engine.kernels.gpu.fp8 import round_tokens

    x = drawn(seed, dtype, rows, inputs) * size
    x[:, ::7] /= 5000  # where e4m3 has fewer bits
    x[:1] = 0
    numbers, scales = (t.cpu() for t in round_tokens(x.to(device), group))
    assert numbers.dtype == FP8
    wide = scales.double().repeat_interleave(group or inputs, 1)[:, :inputs]
    torch.testing.assert_close(numbers.double() * wide, as_rounded(x, group or inputs), rtol=1e-6, atol=0.0)


@settings(deadline=None, max_examples=25)
@given(
    rows=st.sampled_from([0, 1, 3, 70]),
    inputs=st.sampled_from([64, 256, 1040]),
    outputs=st.sampled_from([[16], [64, 32], [8, 40]]),
    high=st.sampled_from([None, 1, 24]),
    biased=st.booleans(),
    seed=st.integers(0, 99),
)
def test_scales_of_rows_and_of_whole_weights(
    device: torch.device, rows: int, inputs: int, outputs: list[int], high: int | None, biased: bool, seed: int
) -> None:
    layer = ColumnLinear(inputs, {f"part{i}": Rows(size) for i, size in enumerate(outputs)})
    filled(layer, Fp8Linear(Fp8(block=(high, None), scale="weight_scale")), device, seed)
    x, bias = drawn(seed, torch.bfloat16, rows, inputs), drawn(seed + 1, torch.bfloat16, sum(outputs))
    wanted = as_rounded(x, inputs) @ meant(layer).t() + (bias.double() if biased else 0)
    close(layer.method.multiply(layer, x.to(device), bias.to(device) if biased else None), wanted.to(torch.bfloat16))


@settings(deadline=None, max_examples=25)
@given(
    rows=st.sampled_from([0, 1, 3, 70]),
    inputs=st.sampled_from([(128, 4), (32, 5), (96, 2), (128, 12)]),
    outputs=st.sampled_from([[16], [64, 32], [9, 40]]),
    high=st.sampled_from([24, 128]),
    biased=st.booleans(),
    seed=st.integers(0, 99),
)
def test_scales_of_blocks(
    device: torch.device,
    rows: int,
    inputs: tuple[int, int],
    outputs: list[int],
    high: int,
    biased: bool,
    seed: int,
) -> None:
    wide, size = inputs[0], inputs[0] * inputs[1]
    layer = ColumnLinear(size, {f"part{i}": Rows(count) for i, count in enumerate(outputs)})
    filled(layer, Fp8Linear(Fp8(block=(high, wide), scale="weight_scale")), device, seed)
    x, bias = drawn(seed, torch.bfloat16, rows, size), drawn(seed + 1, torch.bfloat16, sum(outputs))
    wanted = as_rounded(x, min(128, wide & -wide)) @ meant(layer).t() + (bias.double() if biased else 0)
    close(layer.method.multiply(layer, x.to(device), bias.to(device) if biased else None), wanted.to(torch.bfloat16))


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_blocks_that_ranks_cut(device: torch.device, rank: int) -> None:
    """Each has 320 inputs, two blocks and a half."""
    with build_for(TensorRanks(rank, 3)):
        layer = RowLinear(Rows(960), 48)
    filled(layer, Fp8Linear(Fp8(block=(32, 128), scale="weight_scale")), device, rank)
    x = drawn(rank, torch.bfloat16, 4, 320)
    found = layer.method.multiply(layer, x.to(device), None)
    close(found, (as_rounded(x, 64 if rank % 2 else 128) @ meant(layer).t()).to(torch.bfloat16))


@pytest.mark.parametrize(("inputs", "outputs"), [(24, 16), (32, 10)])
def test_sizes_that_no_product_of_fp8_takes_are_multiplied_with_activations_as_they_are(
    device: torch.device, inputs: int, outputs: int
) -> None:
    layer = filled(Linear(inputs, outputs), Fp8Linear(Fp8(block=(1, None), scale="weight_scale")), device, 0)
    x = drawn(1, torch.bfloat16, 3, inputs)
    close(layer.method.multiply(layer, x.to(device), None), (x.double() @ meant(layer).t()).to(torch.bfloat16))


@settings(deadline=None, max_examples=10)
@given(
    rows=st.sampled_from([0, 1, 70]),
    inputs=st.sampled_from([28, 30, 512]),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
    biased=st.booleans(),
    seed=st.integers(0, 99),
)
def test_integers_of_8_bits_with_scales_of_rows(
    device: torch.device, rows: int, inputs: int, dtype: torch.dtype, biased: bool, seed: int
) -> None:
    layer = filled(Linear(inputs, 40), Int8WhileLoading(), device, seed)
    layer.get_parameter("weight_scale").div_(30)
    x, bias = drawn(seed, dtype, rows, inputs), drawn(seed + 1, dtype, 40)
    wanted = x.double() @ meant(layer).to(dtype).double().t() + (bias.double() if biased else 0)
    with patch.object(choice, "interpreted_on_cpu", True), patch("quire_engine.kernels.cpu.library", None):
        close(layer.method.multiply(layer, x.to(device), bias.to(device) if biased else None), wanted.to(dtype))


@pytest.mark.parametrize("form", ["fp8 by blocks", "fbgemm fp8 by rows"])
def test_logits_of_a_model_are_about_those_of_the_weights_that_are_meant(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """About: e4m3 takes up to a sixteenth of every activation. Of another model they would be 1.4 times as far as 0."""
    if device.type == "cuda":
        pytest.skip("the engine of this test is one on a CPU")
    model = make_model(*(FAMILIES["llama"][0], FAMILIES["llama"][1]()))
    save_quantized(model, tmp_path, FORMATS[form])
    monkeypatch.setattr(choice, "interpreted_on_cpu", True)
    prompt = [3, 1, 4, 1, 5, 9, 2, 6]
    with patch.object(Fp8Linear, "_rows", side_effect=AssertionError("weights were turned into floats")):
        _, (logits,) = answer(build(tmp_path, dtype="bfloat16"), [prompt], 1)
    with torch.no_grad():
        wanted = model(torch.tensor([prompt])).logits[0, -1]
    assert float((logits.float() - wanted).norm() / wanted.norm()) < 0.25
