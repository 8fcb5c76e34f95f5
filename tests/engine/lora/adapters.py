"""Small random adapters, as peft saves them, what peft answers with them, and engines that serve them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from quire_engine.config import EngineConfig
from quire_engine.core.loop import EngineCore
from quire_engine.core.messages import EngineRequest
from quire_engine.engine import build_engine
from quire_engine.sampling_params import SamplingParams
from tests.engine.models.checkpoints import ALL, MAX_MODEL_LEN, greedy_reference, make_model, mixed_prompts, save

PROMPTS = [[token % 96 for token in prompt] for prompt in mixed_prompts(9, 60)]  # the others may be an image's
NEW_TOKENS = 10
MODULES: dict[str, list[str] | str] = {
    "LlamaForCausalLM: grouped heads": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "GPT2": ["c_attn", "c_proj", "c_fc"],
    "Phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    "GPTNeoX": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    "Falcon": ["query_key_value", "dense"],
    # Of families with experts and encoders only the linears that see each token: they are named by patterns.
    "MixtralForCausalLM: experts": r".*self_attn\.(q|k|v|o)_proj",
    "Qwen2MoeForCausalLM: dense": r".*\.(self_attn|shared_expert|layers\.\d\.mlp)\.(q|k|v|o|gate|up|down)_proj",
    "DeepseekV2ForCausalLM: latent": r".*\.self_attn\.(q_a_proj|q_b_proj|kv_a_proj_with_mqa|o_proj)",
    "Llava": r".*language_model.*(q|k|v|o|gate|up|down)_proj",
    "Phi4Multimodal": r"model\.layers.*\.(qkv_proj|o_proj|gate_up_proj|down_proj)",
}
Answers = dict[str | None, list[list[int]]]


@dataclass
class Adapted:
    """A checkpoint with two adapters, a and b, and what transformers and peft answer, by adapter."""

    directory: Path
    model: PreTrainedModel
    folders: dict[str, Path]
    answers: Answers


def make_adapter(model: PreTrainedModel, directory: Path, *, seed: int = 0, **settings: Any) -> Any:
    """Save an adapter of `model` whose every weight matters. Returns the model with it."""
    torch.manual_seed(seed)
    adapted: Any = get_peft_model(copy.deepcopy(model), LoraConfig(**{"r": 4, "lora_alpha": 6} | settings))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.3)
    adapted.save_pretrained(directory)
    return adapted.eval()


def make(folder: Path, case: str) -> Adapted:
    """A model of the family of `MODULES`; one adapter changes all of its linears, the other the first two of a list."""
    transformers.utils.logging.disable_progress_bar()
    cls, config = ALL[next(name for name in ALL if name.startswith(case))]
    model = make_model(cls, config(), seed=3)
    save(model, folder / "model")
    return adapt(model, folder, MODULES[case])


def adapt(model: PreTrainedModel, folder: Path, modules: list[str] | str) -> Adapted:
    """Adapters of a model whose checkpoint is in `folder`/model."""
    answers: Answers = {None: greedy_reference(model, PROMPTS, NEW_TOKENS)}
    other: dict[str, Any] = {"target_modules": modules, "r": 8, "use_rslora": True}
    if isinstance(modules, list):
        other |= {"target_modules": modules[:2], "rank_pattern": {modules[0]: 2}}
    settings: dict[str, dict[str, Any]] = {"a": {"target_modules": modules}, "b": other}
    folders = {name: folder / name for name in settings}
    for seed, (name, path) in enumerate(folders.items()):
        answers[name] = greedy_reference(make_adapter(model, path, seed=seed, **settings[name]), PROMPTS, NEW_TOKENS)
    assert answers["a"] != answers[None] != answers["b"]
    return Adapted(folder / "model", model, folders, answers)


def start(adapted: Adapted, **changes: Any) -> EngineCore:
    settings: dict[str, Any] = {"block_size": 8, "max_model_len": MAX_MODEL_LEN, "num_gpu_blocks_override": 60}
    settings |= {"max_num_batched_tokens": 48, "dtype": "float32", "device": "cpu", "enable_lora": True}
    settings |= {"lora_modules": tuple(f"{name}={path}" for name, path in adapted.folders.items())} | changes
    core, _ = build_engine(EngineConfig(model=str(adapted.directory), **settings))
    return core


def answer(core: EngineCore, choices: list[str | None], prompts: list[list[int]] = PROMPTS, **params: Any) -> Answers:
    """Each prompt with each of `choices`, all at once."""
    answers: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        for name in choices:
            own = SamplingParams(**{"temperature": 0.0, "max_tokens": NEW_TOKENS} | params)
            core.add_request(EngineRequest(f"{name}-{i}", prompt, own, adapter=name))
            answers[f"{name}-{i}"] = []
    while core.has_work():
        for output in core.step():
            assert output.error is None
            answers[output.request_id] += output.new_token_ids
        core.check_integrity()
    return {name: [answers[f"{name}-{i}"] for i in range(len(prompts))] for name in choices}
