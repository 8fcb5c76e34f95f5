"""One product for all experts gives what each expert's own would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import silu

from quire_engine.distributed.ranks import TensorRanks, build_for
from quire_engine.kernels import choice
from quire_engine.layers.experts import Expert, Experts
from quire_engine.layers.linear import LinearMethod, create_weights, finish_weights
from quire_engine.memory_plan.quantization import Awq, Fp8, Gptq
from quire_engine.quantization.awq import AwqLinear
from quire_engine.quantization.fp8 import Fp8Linear, Fp8WhileLoading
from quire_engine.quantization.gptq import GptqLinear
from quire_engine.quantization.int8 import Int8WhileLoading
from tests.engine.kernels.gpu.paged_cases import TOLERANCES
from tests.engine.kernels.gpu.test_model import GREEDY, NEW_TOKENS, answers_of
from tests.engine.models.checkpoints import greedy_reference, make_model, mixed_prompts
from tests.engine.quantization.formats import FORMATS
from tests.engine.quantization.test_quantized_experts import MODELS, save_packed

pytestmark = pytest.mark.usefixtures("one_thread")


@settings(deadline=None, max_examples=20)
@given(
    num_tokens=st.sampled_from([1, 2, 17, 90]),
    num_experts=st.integers(1, 5),
    inputs=st.sampled_from([8, 70]),
    outputs=st.sampled_from([4, 72]),
    dtype=st.sampled_from(list(TOLERANCES)),
    data=st.data(),
)
def test_every_pair_is_multiplied_by_its_expert_and_others_are_zero(
    device: torch.device,
    num_tokens: int,
    num_experts: int,
    inputs: int,
    outputs: int,
    dtype: torch.dtype,
    data: st.DataObject,
) -> None:
    from quire_engine.kernels.gpu.experts import multiply, route

    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    top_k = data.draw(st.integers(1, 3))
    # Experts of another rank are chosen too.
    chosen = torch.randint(-1, num_experts + 2, (num_tokens, top_k), generator=generator)
    x = torch.randn(num_tokens, inputs, generator=generator).to(dtype)
    up = torch.randn(num_experts, outputs, inputs, generator=generator).to(dtype)
    down = torch.randn(num_experts, inputs, outputs, generator=generator).to(dtype)
    routes = route(chosen.to(device), num_experts)
    inner = multiply(x.to(device), up.to(device), routes, of_tokens=True)
    found = multiply(inner, down.to(device), routes, of_tokens=False).cpu()
    inner = inner.cpu()
    near = TOLERANCES[dtype] * 4
    for pair, expert in enumerate(chosen.flatten().tolist()):
        if 0 <= expert < num_experts:
            wanted = up[expert].double() @ x[pair // top_k].double()
            torch.testing.assert_close(inner[pair].double(), wanted, atol=near, rtol=near)
            wanted = down[expert].double() @ inner[pair].double()
            torch.testing.assert_close(found[pair].double(), wanted, atol=near * 8, rtol=near)
        else:
            assert not inner[pair].any()
            assert not found[pair].any()


def fp8(high: int | None, wide: int | None) -> Callable[[], LinearMethod]:
    return lambda: Fp8Linear(Fp8(block=(high, wide), scale="weight_scale"))


def gptq(bits: int, size: int | None, version: int) -> Callable[[], LinearMethod]:
    return lambda: GptqLinear(Gptq(bits=bits, group_size=size, act_order=False, zero_offset=version), "layer")


METHODS: dict[str, Callable[[], LinearMethod]] = {
    "awq, groups of 32": lambda: AwqLinear(Awq(group_size=32), "layer"),
    "awq, one group": lambda: AwqLinear(Awq(group_size=None), "layer"),
    "gptq, 4 bits": gptq(4, 16, 1),
    "gptq, 4 bits, groups that tiles cut": gptq(4, 24, 0),
    "gptq, 8 bits": gptq(8, 48, 0),
    "gptq, 2 bits": gptq(2, 16, 1),
    "fp8 by tensors": fp8(None, None),
    "fp8 by rows": fp8(1, None),
    "fp8 by blocks": fp8(32, 32),
    "fp8 by blocks that tiles cut": fp8(16, 40),
    "fp8 while loading": Fp8WhileLoading,
    "int8 while loading": Int8WhileLoading,
}
HIDDEN, INNER = 192, 192


def drawn_experts(method: Callable[[], LinearMethod], device: torch.device, seed: int, ranks: TensorRanks) -> Experts:
    """With numbers, zero points and scales that all differ."""
    generator = torch.Generator().manual_seed(seed)
    with build_for(ranks):
        experts = Experts(3, HIDDEN, INNER, silu)
    create_weights(experts, lambda path, layer: method())
    for expert in experts.children():
        if isinstance(expert, Expert):
            for layer in (expert.gate_up_proj, expert.down_proj):
                layer.method.draw(layer, generator)
                for name, tensor in layer.named_parameters():
                    if "scale" in name:
                        tensor.mul_(torch.rand(tensor.shape, generator=generator) + 0.5)
                    elif name == "qzeros":
                        tensor.random_(-(1 << 31), 1 << 31, generator=generator)
    experts.to(device)
    with patch.object(choice, "has_triton", lambda: False):  # one by one, activations are not rounded to FP8 either
        finish_weights(experts)
    with patch.object(choice, "interpreted_on_cpu", True):
        experts.finish()
    return experts


@settings(deadline=None, max_examples=40)
@given(
    name=st.sampled_from(list(METHODS)),
    num_tokens=st.sampled_from([1, 2, 17, 60]),
    half=st.booleans(),
    dtype=st.sampled_from(list(TOLERANCES)),
    seed=st.integers(0, 99),
)
def test_quantized_experts_give_at_once_what_they_give_one_by_one(
    device: torch.device, name: str, num_tokens: int, half: bool, dtype: torch.dtype, seed: int
) -> None:
    ranks = TensorRanks(1, 2) if half else TensorRanks()
    experts = drawn_experts(METHODS[name], device, seed, ranks)
    assert experts.in_one_product
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_tokens, HIDDEN, generator=generator).to(device, dtype)
    weights = torch.rand(num_tokens, 2, generator=generator).to(device)
    chosen = torch.rand(num_tokens, 3, generator=generator).argsort(dim=1)[:, :2].to(device)
    with patch.object(choice, "interpreted_on_cpu", True):
        found = experts(x, weights, chosen)
    with patch.object(choice, "has_triton", lambda: False):
        one_by_one = experts(x, weights, chosen)
    near = TOLERANCES[dtype]
    torch.testing.assert_close(found, one_by_one, atol=near * float(one_by_one.abs().max() + 1e-3), rtol=near)


def test_experts_whose_groups_lie_apart_go_one_by_one(device: torch.device) -> None:
    settings = Gptq(bits=4, group_size=16, act_order=True, zero_offset=1)
    experts = Experts(2, HIDDEN, INNER, silu)
    create_weights(experts, lambda path, layer: GptqLinear(settings, "layer"))
    for expert in experts.children():
        if isinstance(expert, Expert):
            group_of = expert.down_proj.get_parameter("g_idx")
            group_of.copy_(group_of.flip(1))
    experts.to(device)
    with patch.object(choice, "interpreted_on_cpu", True):
        finish_weights(experts)
    assert not experts.in_one_product


def test_without_kernels_weights_stay_where_they_were_loaded() -> None:
    experts = Experts(2, HIDDEN, INNER, silu)
    create_weights(experts, lambda path, layer: Int8WhileLoading())
    places = [parameter.data_ptr() for parameter in experts.parameters()]
    finish_weights(experts)
    assert [parameter.data_ptr() for parameter in experts.parameters()] == places
    assert not experts.in_one_product


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("mixtral", "awq, groups of 32"),
        ("deepseek", "fp8 by blocks"),
        pytest.param("deepseek", "gptq, 4 bits", marks=pytest.mark.slow),
    ],
)
def test_a_model_answers_as_transformers_does_with_the_weights_that_are_meant(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, form: str
) -> None:
    cls, config = MODELS[name]
    model = save_packed(make_model(cls, config()), tmp_path, FORMATS[form])
    used: list[Experts] = []
    at_once: Any = Experts._at_once

    def counted(self: Experts, *operands: torch.Tensor) -> torch.Tensor:
        used.append(self)
        out: torch.Tensor = at_once(self, *operands)
        return out

    monkeypatch.setattr(Experts, "_at_once", counted)
    monkeypatch.setattr(choice, "interpreted_on_cpu", True)
    prompts = mixed_prompts(2, 16)
    assert answers_of(tmp_path / "packed", device, prompts, GREEDY) == greedy_reference(model, prompts, NEW_TOKENS)
    assert used
