"""Quantized experts and latent attention answer as transformers does with the weights that their numbers mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from tests.engine.models.checkpoints import SIZES, greedy_reference, make_model, mixed_prompts, save
from tests.engine.quantization.formats import FORMATS, Format, edit_config
from tests.engine.quantization.test_quantized_models import answer, build

pytestmark = pytest.mark.usefixtures("one_thread")

LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 32,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}
MODELS: dict[str, tuple[type[PreTrainedModel], Any]] = {
    "mixtral": (MixtralForCausalLM, lambda: MixtralConfig(**SIZES, num_local_experts=4)),
    "deepseek": (DeepseekV3ForCausalLM, lambda: DeepseekV3Config(**SIZES | LATENT)),
}


def save_packed(model: PreTrainedModel, directory: Path, form: Format) -> PreTrainedModel:
    """Write `model` with all linears of its layers but the routers packed. Returns what it then is."""
    tensors = load_file(save(model, directory / "means") / "model.safetensors")
    packed, means = {}, {}
    for name, weight in tensors.items():
        if ".layers." in name and weight.dim() == 2 and not name.endswith(".gate.weight"):
            parts, means[name] = form.pack(weight)
            packed |= {f"{name.removesuffix('weight')}{end}": t.contiguous() for end, t in parts.items()}
        else:
            packed[name] = means[name] = weight
    save_file({n: t.contiguous() for n, t in means.items()}, directory / "means" / "model.safetensors")
    save_file(packed, save(model, directory / "packed") / "model.safetensors")
    edit_config(directory / "packed", quantization_config=form.config)
    meant: PreTrainedModel = AutoModelForCausalLM.from_pretrained(directory / "means", dtype=torch.float32)
    return meant


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("form", ["fp8 by blocks", "awq, groups of 32", "gptq, 4 bits"])
def test_logits_and_greedy_answers_are_those_of_the_weights_that_are_meant(
    tmp_path: Path, name: str, form: str
) -> None:
    cls, config = MODELS[name]
    model = save_packed(make_model(cls, config()), tmp_path, FORMATS[form])
    prompts = mixed_prompts(3, 40)
    answers, logits = answer(build(tmp_path / "packed"), prompts, 8)
    with torch.no_grad():
        for prompt, own in zip(prompts, logits, strict=True):
            torch.testing.assert_close(own, model(torch.tensor([prompt])).logits[0, -1], atol=1e-4, rtol=1e-5)
    assert answers == greedy_reference(model, prompts, 8)
