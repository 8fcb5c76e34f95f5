"""A quantized checkpoint answers as transformers does with the weights that its numbers mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from quire_engine.config import EngineConfig
from quire_engine.core.loop import EngineCore
from quire_engine.core.messages import EngineRequest
from quire_engine.engine import build_engine
from quire_engine.sampling_params import SamplingParams
from tests.engine.models.checkpoints import FAMILIES, SIZES, greedy_reference, make_model, mixed_prompts, save
from tests.engine.quantization.formats import FORMATS, save_quantized

pytestmark = pytest.mark.usefixtures("one_thread")


def build(directory: Path, **changes: Any) -> EngineCore:
    settings: dict[str, Any] = {"dtype": "float32", "num_gpu_blocks_override": 64} | changes
    return build_engine(EngineConfig(model=str(directory), device="cpu", **settings))[0]


def answer(core: EngineCore, prompts: list[list[int]], count: int) -> tuple[list[list[int]], list[torch.Tensor]]:
    """Greedy tokens, and the logits of each prompt's last token. One prompt at a time."""
    model: Any = core._executor._model  # type: ignore[attr-defined]  # the seam names no model
    answers, logits, plain = [], [], model.logits
    for i, prompt in enumerate(prompts):
        seen: list[torch.Tensor] = []
        model.logits = lambda hidden, seen=seen: seen.append(plain(hidden)) or seen[-1].clone()
        params = SamplingParams(temperature=0.0, max_tokens=count)
        core.add_request(EngineRequest(str(i), prompt, params))
        answers.append([])
        while core.has_work():
            answers[-1] += [token for output in core.step() for token in output.new_token_ids]
        logits.append(seen[0][-1])
    model.logits = plain
    return answers, logits


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("form", FORMATS)
def test_logits_and_greedy_answers_are_those_of_the_weights_that_are_meant(
    tmp_path: Path, family: str, form: str
) -> None:
    cls, config = FAMILIES[family]
    model = make_model(cls, config())
    core = build(save_quantized(model, tmp_path, FORMATS[form]))
    prompts = mixed_prompts(5, 40)
    answers, logits = answer(core, prompts, 8)
    with torch.no_grad():
        for prompt, own in zip(prompts, logits, strict=True):
            torch.testing.assert_close(own, model(torch.tensor([prompt])).logits[0, -1], atol=1e-4, rtol=1e-5)
    assert answers == greedy_reference(model, prompts, 8)


@pytest.mark.parametrize("form", FORMATS)
def test_a_layer_that_the_quantizer_left_alone_is_taken_as_it_is(tmp_path: Path, form: str) -> None:
    """Whatever config.json lists: several tools do not write down which layers these were."""
    model = make_model(*(FAMILIES["llama"][0], FAMILIES["llama"][1]()))
    core = build(save_quantized(model, tmp_path, FORMATS[form], only=lambda name: "layers.0.self_attn" not in name))
    prompts = mixed_prompts(3, 40)
    assert answer(core, prompts, 8)[0] == greedy_reference(model, prompts, 8)


def test_float_weights_are_rounded_to_int8_while_loading(tmp_path: Path) -> None:
    cls, config = FAMILIES["qwen2"]
    model = make_model(cls, config())
    core = build(save(model, tmp_path), quantization="int8")
    loaded: Any = core._executor._model  # type: ignore[attr-defined]  # the seam names no model
    assert loaded.get_submodule("model.layers.1.mlp.down_proj").weight.dtype == torch.int8
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_proj.weight" in name:
                scale = parameter.abs().amax(1, keepdim=True) / 127
                parameter.copy_((parameter / scale).round() * scale)
    prompts = mixed_prompts(5, 40)
    assert answer(core, prompts, 8)[0] == greedy_reference(model, prompts, 8)


def test_float_weights_are_rounded_to_fp8_while_loading(tmp_path: Path) -> None:
    """By rows, which rounds each weight by a sixteenth of itself at most."""
    cls, config = FAMILIES["qwen2"]
    model = make_model(cls, config())
    core = build(save(model, tmp_path), quantization="fp8")
    loaded: Any = core._executor._model  # type: ignore[attr-defined]  # the seam names no model
    proj = loaded.get_submodule("model.layers.1.mlp.down_proj")
    assert proj.weight.dtype == torch.float8_e4m3fn
    means = proj.weight.float() * proj.weight_scale
    weight = model.model.layers[1].mlp.down_proj.weight  # type: ignore[union-attr, index]  # only modules to mypy
    assert ((means - weight).abs() <= weight.abs() / 16 + 1e-3).all()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_proj.weight" in name:
                scale = parameter.abs().amax(1, keepdim=True) / 448
                parameter.copy_((parameter / scale).to(torch.float8_e4m3fn).float() * scale)
    prompts = mixed_prompts(5, 40)
    assert answer(core, prompts, 8)[0] == greedy_reference(model, prompts, 8)


def test_a_quantized_model_keeps_no_float_copy(tmp_path: Path) -> None:
    sizes = SIZES | {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1}
    model = make_model(LlamaForCausalLM, LlamaConfig(**sizes))
    for name, form in FORMATS.items():
        core = build(save_quantized(model, tmp_path / name, form))
        layer = core._executor._model.get_submodule("model.layers.0")  # type: ignore[attr-defined]  # the seam names no model
        linears = [layer.self_attn.qkv_proj, layer.self_attn.o_proj, layer.mlp.gate_up_proj, layer.mlp.down_proj]
        held = sum(t.numel() * t.element_size() for m in linears for t in (*m.parameters(), *m.buffers()))
        elements = sum(m.in_features * m.out_features for m in linears)
        assert held < 1.25 * elements, name  # bytes; a copy in float32 alone would take 4


@pytest.mark.parametrize("form", FORMATS)
def test_dummy_weights_of_a_quantized_model_keep_activations_in_range(tmp_path: Path, form: str) -> None:
    model = make_model(*(FAMILIES["llama"][0], FAMILIES["llama"][1]()))
    save_quantized(model, tmp_path, FORMATS[form])
    (tmp_path / "model.safetensors").unlink()
    core = build(tmp_path, load_format="dummy")
    _, (logits,) = answer(core, [[1, 2, 3]], 2)
    assert logits.isfinite().all()
    assert 0 < logits.abs().max() < 10
