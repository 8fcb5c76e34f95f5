"""The plan of a quantized model, made from headers, is what the engine comes to hold."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from quire_engine.config import EngineConfig
from quire_engine.distributed.ranks import TensorRanks, build_for
from quire_engine.engine import build_engine
from quire_engine.layers.linear import create_weights, finish_weights
from quire_engine.loading.weights import load_weights, stored_tensors
from quire_engine.memory_plan.model_facts import ModelFacts
from quire_engine.memory_plan.quantization import ROUNDED, quantization_of
from quire_engine.memory_plan.stages import Stage
from quire_engine.models.decoder import CausalLM
from quire_engine.models.registry import decoder_spec
from quire_engine.quantization.choice import methods_for, naming_with
from quire_operator.api import PlanStatus
from quire_operator.plan.gpu_memory import Device
from quire_operator.plan.service_plan import plan_of
from tests.engine.models.checkpoints import FAMILIES, SIZES, make_model, save
from tests.engine.models.families_with_experts import LATENT
from tests.engine.quantization.formats import FORMATS, edit_config, save_quantized
from tests.operator.services import service

pytestmark = pytest.mark.usefixtures("one_thread")

DEEPSEEK = DeepseekV3Config(
    **LATENT
    | {"intermediate_size": 128, "moe_intermediate_size": 128, "kv_lora_rank": 32, "q_lora_rank": 32, "v_head_dim": 32}
)


def planned(directory: Path, **model: Any) -> Any:
    spec = service(model={"source": "hf://org/name", **model}).spec
    return plan_of(spec, ModelFacts.of_directory(directory), Device("CPU", 4 << 30, on_gpu=False))


def held(directory: Path, **changes: Any) -> int:
    core, _ = build_engine(EngineConfig(model=str(directory), device="cpu", num_gpu_blocks_override=64, **changes))
    model: Any = core._executor._model  # type: ignore[attr-defined]  # the seam names no model
    return sum(p.numel() * p.element_size() for p in model.parameters())


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
@pytest.mark.parametrize("form", FORMATS)
def test_weights_are_as_large_as_planned(tmp_path: Path, form: str, dtype: str) -> None:
    cls, config = FAMILIES["qwen2"]
    save_quantized(make_model(cls, config()), tmp_path, FORMATS[form])
    assert planned(tmp_path, dtype=dtype).weights_bytes == pytest.approx(held(tmp_path, dtype=dtype), rel=0.02)


@pytest.mark.parametrize("scheme", ROUNDED)
def test_weights_that_are_rounded_while_loading_are_planned_to_within_3_percent(tmp_path: Path, scheme: str) -> None:
    sizes = SIZES | {"hidden_size": 256, "intermediate_size": 768, "vocab_size": 64}
    save(make_model(LlamaForCausalLM, LlamaConfig(**sizes)), tmp_path)
    plan = planned(tmp_path, quantization=scheme, dtype="bfloat16")
    assert plan.weights_bytes == pytest.approx(held(tmp_path, quantization=scheme, dtype="bfloat16"), rel=0.03)
    assert plan.weights_bytes < 0.6 * planned(tmp_path, dtype="bfloat16").weights_bytes


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize(
    "form", ["fp8 by blocks", "compressed-tensors fp8 by rows", "awq, groups of 32", "gptq, 4 bits"]
)
@pytest.mark.parametrize(
    "model",
    [(Qwen2ForCausalLM, Qwen2Config(**SIZES)), (DeepseekV3ForCausalLM, DEEPSEEK)],
    ids=["Qwen2", "DeepSeek"],
)
def test_a_rank_holds_what_is_planned_for_each_gpu(
    tmp_path: Path, model: tuple[type[PreTrainedModel], PretrainedConfig], form: str, size: int
) -> None:
    """Two KV heads are repeated on four ranks, latent projections are whole on each, and one is not kept quantized."""
    save_quantized(make_model(*model), tmp_path, FORMATS[form], lambda name: ".experts." not in name)
    read = json.loads((tmp_path / "config.json").read_text())
    spec, quantization = decoder_spec(read), quantization_of(read)
    assert quantization is not None
    with build_for(TensorRanks(0, size)):
        built = CausalLM(spec)
        create_weights(built, methods_for(quantization, stored_tensors(tmp_path, spec.naming)))
    load_weights(built, tmp_path, naming_with(quantization, spec.naming))
    finish_weights(built)
    facts = ModelFacts.of_directory(tmp_path)
    held_here = sum(p.numel() * p.element_size() for p in built.parameters())
    assert facts.weights.bytes_per_gpu(facts.shape, "float32", size) == pytest.approx(held_here, rel=0.02)
    assert facts.stages is not None
    assert facts.stages.weights(Stage(), range(facts.shape.num_layers)) == facts.weights


@pytest.mark.parametrize(
    ("form", "scheme"),
    [("awq, groups of 32", "awq"), ("gptq, 4 bits", "gptq"), ("compressed-tensors fp8 by rows", "fp8")],
)
def test_the_scheme_is_known_and_no_other_one_is_planned_with(tmp_path: Path, form: str, scheme: str) -> None:
    cls, config = FAMILIES["llama"]
    save_quantized(make_model(cls, config()), tmp_path, FORMATS[form])
    facts = ModelFacts.of_directory(tmp_path)
    assert facts.quantization == scheme
    assert ModelFacts.from_json(facts.to_json()) == facts
    assert planned(tmp_path, quantization=scheme).verdict == "Fits"
    other = "gptq" if scheme == "awq" else "awq"
    plan = planned(tmp_path, quantization=other)
    assert (plan.verdict, plan.reason) == ("Skipped", "OtherQuantization")
    assert f"is {other} and the checkpoint is quantized by {scheme}: write auto" in plan.message


@pytest.mark.parametrize("form", ["awq, groups of 32", "gptq, 4 bits"])
def test_the_scheme_is_known_where_only_an_older_tools_file_has_it(tmp_path: Path, form: str) -> None:
    cls, config = FAMILIES["llama"]
    save_quantized(make_model(cls, config()), tmp_path, FORMATS[form])
    file = tmp_path / "config.json"
    written = json.loads(file.read_text())
    settings = written.pop("quantization_config")
    method = settings.pop("quant_method")
    file.write_text(json.dumps(written))
    if method == "awq":
        older = {"zero_point": True, "q_group_size": settings["group_size"], "w_bit": 4, "version": "GEMM"}
        (tmp_path / "quant_config.json").write_text(json.dumps(older))
    else:
        (tmp_path / "quantize_config.json").write_text(json.dumps(settings))
    assert ModelFacts.of_directory(tmp_path).quantization == method
    assert planned(tmp_path).weights_bytes == held(tmp_path)


def test_a_scheme_that_only_another_engine_reads_is_refused_for_this_one(tmp_path: Path) -> None:
    cls, config = FAMILIES["llama"]
    save(make_model(cls, config()), tmp_path)
    edit_config(tmp_path, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    facts = ModelFacts.of_directory(tmp_path)
    assert ModelFacts.from_json(facts.to_json()) == facts
    plan = planned(tmp_path)
    assert plan.verdict == "UnsupportedModel"
    assert "quant_method 'bitsandbytes' is not supported: there are awq" in plan.message
    assert planned_for_vllm(facts).verdict == "Fits"


def test_quantized_weights_of_which_config_json_says_nothing_are_refused_for_this_engine(tmp_path: Path) -> None:
    cls, config = FAMILIES["llama"]
    save_quantized(make_model(cls, config()), tmp_path, FORMATS["compressed-tensors fp8 by rows"])
    file = tmp_path / "config.json"
    written = json.loads(file.read_text())
    del written["quantization_config"]  # as ModelOpt, which has hf_quant_config.json instead
    file.write_text(json.dumps(written))
    facts = ModelFacts.of_directory(tmp_path)
    assert ModelFacts.from_json(facts.to_json()) == facts
    plan = planned(tmp_path)
    assert plan.verdict == "UnsupportedModel"
    assert re.search(r"_proj\.weight of type F8_E4M3: .* config\.json has no quantization_config", plan.message)
    assert planned_for_vllm(facts).verdict == "Fits"


def planned_for_vllm(facts: ModelFacts) -> PlanStatus:
    vllm = {"type": "vllm", "image": "engine:1"}
    spec = service(model={"source": "hf://org/name"}, engine=vllm).spec
    return plan_of(spec, facts, Device("GPU", 80 << 30, on_gpu=True))
