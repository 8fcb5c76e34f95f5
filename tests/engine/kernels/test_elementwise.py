"""Norms, rotation and activations by the library are what torch makes of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quire_engine.kernels import cpu
from quire_engine.layers import rotary
from quire_engine.layers.norm import OffsetRMSNorm, RMSNorm
from quire_engine.memory_plan.model_shape import ModelShape
from quire_engine.models.mlp_block import MLPSpec

pytestmark = pytest.mark.usefixtures("one_thread")
EVERY_SIZE = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TYPES = st.sampled_from([torch.float32, torch.bfloat16])


def close(found: torch.Tensor, wanted: torch.Tensor, roundings: int) -> None:
    """Apart by so many roundings of their type, of numbers of about this size, at most."""
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    step = roundings * torch.finfo(found.dtype).eps
    torch.testing.assert_close(found, wanted, rtol=step, atol=4 * step)


@EVERY_SIZE
@given(rows=st.integers(0, 5), size=st.integers(1, 90), dtype=TYPES, kind=st.sampled_from([RMSNorm, OffsetRMSNorm]))
def test_norms(
    library: cpu.Library,
    monkeypatch: pytest.MonkeyPatch,
    rows: int,
    size: int,
    dtype: torch.dtype,
    kind: type[RMSNorm],
) -> None:
    torch.manual_seed(size)
    norm = kind(size, 1e-5).to(dtype)
    norm.weight.copy_(torch.randn(size))
    x = torch.randn(3, rows, size).to(dtype).transpose(0, 1)
    with torch.inference_mode():
        monkeypatch.setattr(cpu, "library", None)
        wanted = norm(x)
        monkeypatch.setattr(cpu, "library", library)
        close(norm(x), wanted, 2)


@EVERY_SIZE
@given(tokens=st.integers(0, 4), half=st.integers(1, 40), rest=st.integers(0, 20), dtype=TYPES)
def test_rotation_of_some_features_or_all(
    library: cpu.Library, monkeypatch: pytest.MonkeyPatch, tokens: int, half: int, rest: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(half)
    size = 2 * half + rest
    x = torch.randn(tokens, 5 * size).to(dtype)[:, size : 4 * size].unflatten(-1, (3, size))  # heads among others
    angles = torch.randn(tokens, 1, half)
    turn = rotary.rotate_first if rest else rotary.rotate
    with torch.inference_mode():
        monkeypatch.setattr(cpu, "library", None)
        wanted = turn(x, angles.cos().to(dtype), angles.sin().to(dtype))
        monkeypatch.setattr(cpu, "library", library)
        close(turn(x, angles.cos().to(dtype), angles.sin().to(dtype)), wanted, 3)


@EVERY_SIZE
@given(rows=st.integers(0, 4), size=st.integers(1, 70), dtype=TYPES)
def test_silu_and_mul(library: cpu.Library, rows: int, size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(size)
    x = (torch.randn(rows, 2 * size) * 20).to(dtype)
    x[:, :1] = -300.0  # where e^-x is more than float32 holds
    gate, up = x.chunk(2, dim=-1)
    wanted = torch.nn.functional.silu(gate) * up
    close(library.silu_and_mul(x), wanted, 2)


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_a_gated_mlp_is_the_same_with_the_library(
    library: cpu.Library, monkeypatch: pytest.MonkeyPatch, activation: str
) -> None:
    from quire_engine.layers.linear import create_weights

    torch.manual_seed(0)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "vocab_size": 8,
        "max_position_embeddings": 8,
    }
    mlp = MLPSpec(activation=activation).build(ModelShape.from_config(config))
    create_weights(mlp)
    for parameter in mlp.parameters():
        parameter.normal_()
    x = torch.randn(3, 24)
    with torch.inference_mode():
        monkeypatch.setattr(cpu, "library", None)
        wanted = mlp(x)
        monkeypatch.setattr(cpu, "library", library)
        torch.testing.assert_close(mlp(x), wanted)


def test_threads_change_nothing(library: cpu.Library) -> None:
    x = torch.randn(70, 2048)
    alone = library.rms_norm(x, torch.ones(2048), 1e-5, offset=False), library.silu_and_mul(x)
    torch.set_num_threads(3)
    try:
        again = library.rms_norm(x, torch.ones(2048), 1e-5, offset=False), library.silu_and_mul(x)
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(alone, again, strict=True))


def test_numbers_that_are_none_stay_so(library: cpu.Library) -> None:
    strange = torch.tensor([[float("nan"), 1.0, 1.0, 1.0], [float("inf"), 1.0, 1.0, 1.0]])
    assert library.silu_and_mul(strange)[:, 0].isfinite().logical_not().all()
    assert library.rms_norm(strange, torch.ones(4), 1e-5, offset=False)[:, 0].isnan().all()
    assert library.rms_norm(strange, torch.ones(4), 1e-5, offset=False)[0].isnan().all()
