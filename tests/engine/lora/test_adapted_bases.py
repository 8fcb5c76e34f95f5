"""Adapters of models whose weights are rounded: the answers are peft's over the weights that are meant."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from quire_engine.startup_error import StartupError
from tests.engine.lora.adapters import MODULES, adapt, answer, make, make_adapter, start
from tests.engine.models.checkpoints import FAMILIES, make_model, save
from tests.engine.quantization.formats import FORMATS, save_quantized

pytestmark = pytest.mark.usefixtures("one_thread")

LLAMA = "LlamaForCausalLM: grouped heads"


@pytest.mark.parametrize("form", ["fp8 by blocks", "awq, groups of 32", "gptq, 4 bits, act-order"])
def test_a_quantized_checkpoint_is_adapted_as_the_weights_that_are_meant(form: str, tmp_path: Path) -> None:
    cls, config = FAMILIES["llama"]
    model = make_model(cls, config())
    save_quantized(model, tmp_path / "model", FORMATS[form])
    adapted = adapt(model, tmp_path, MODULES[LLAMA])
    assert answer(start(adapted), [None, "a", "b"]) == adapted.answers


def _int8(weight: torch.Tensor) -> torch.Tensor:
    scale = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scale).round() * scale


def _fp8(weight: torch.Tensor) -> torch.Tensor:
    scale = weight.abs().amax(1, keepdim=True) / 448
    return (weight / scale).to(torch.float8_e4m3fn).float() * scale


@pytest.mark.parametrize(("quantization", "round_weight"), [("int8", _int8), ("fp8", _fp8)])
def test_weights_rounded_while_loading_are_adapted_too(
    quantization: str, round_weight: Callable[[torch.Tensor], torch.Tensor], tmp_path: Path
) -> None:
    cls, config = FAMILIES["llama"]
    model = make_model(cls, config())
    save(model, tmp_path / "model")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_proj.weight" in name:
                parameter.copy_(round_weight(parameter))
    adapted = adapt(model, tmp_path, MODULES[LLAMA])
    assert answer(start(adapted, quantization=quantization), [None, "a", "b"]) == adapted.answers


@pytest.mark.parametrize(
    ("case", "modules", "message"),
    [
        (
            "Llava",
            ["q_proj"],
            "model.vision_tower.encoder.layers.0.self_attn.q_proj is no linear of the model's layers",
        ),
        ("Phi4Multimodal", ["down_proj"], "feed_forward_in.down_proj is no linear of the model's layers"),
        (
            "MixtralForCausalLM: experts",
            ["w1", "w3"],
            "target_parameters is ['gate_up_proj']: only None is supported",
        ),
    ],
)
def test_one_that_changes_more_than_the_layers_is_refused_with_what(
    case: str, modules: list[str], message: str, tmp_path: Path
) -> None:
    adapted = make(tmp_path, case)
    make_adapter(adapted.model, adapted.folders["a"], target_modules=modules)
    with pytest.raises(StartupError, match=re.escape(message)):
        start(adapted)
