"""Vectors of prompts, compared with the hidden states of transformers in float32."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from quire_engine.config import EngineConfig
from quire_engine.core.loop import EngineCore
from quire_engine.core.messages import EngineInfo, EngineRequest
from quire_engine.core.pooling import PoolingParams
from quire_engine.engine import build_engine
from quire_engine.request_embedding import embed_all
from quire_engine.sampling_params import SamplingParams
from quire_engine.startup_error import StartupError
from tests.engine.models.checkpoints import ENCODERS, FAMILIES, SIZES, make_model, mixed_prompts, save

pytestmark = pytest.mark.usefixtures("one_thread")

HEADLESS = {
    "LlamaModel": ("LlamaConfig", SIZES),
    "MistralModel": ("MistralConfig", SIZES | {"sliding_window": 20}),
    "Qwen2Model": ("Qwen2Config", SIZES),
    "Qwen3Model": ("Qwen3Config", SIZES | {"head_dim": 24}),
    "GPT2Model": ("GPT2Config", {"vocab_size": 128, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}),
}
OVER: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "cls_token": lambda hidden: hidden[0],
    "mean_tokens": lambda hidden: hidden.mean(0),
    "lasttoken": lambda hidden: hidden[-1],
}


def start(directory: Path, **settings: Any) -> tuple[EngineCore, EngineInfo]:
    defaults: dict[str, Any] = {"block_size": 8, "num_gpu_blocks_override": 64, "device": "cpu"}
    return build_engine(EngineConfig(model=str(directory), **(defaults | settings)))


def headless(name: str) -> PreTrainedModel:
    config, settings = HEADLESS[name]
    return make_model(getattr(transformers, name), getattr(transformers, config)(**settings))


def write_modules(directory: Path, mode: str, *, normalize: bool) -> None:
    modules = [{"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"}]
    modules += [{"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
    if normalize:
        modules += [{"idx": 2, "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling").mkdir(exist_ok=True)
    modes = {f"pooling_mode_{name}": name == mode for name in OVER}
    (directory / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 64, **modes}))


@torch.no_grad()
def reference(model: PreTrainedModel, prompt: list[int], over: str, *, normalize: bool = True) -> torch.Tensor:
    ids = torch.tensor([prompt])
    inner: Any = getattr(model, model.base_model_prefix, model)
    kwargs = {}
    padding = getattr(model.config, "pad_token_id", None)
    if "oberta" in type(model).__name__:  # its positions would skip tokens that happen to be the padding's id
        kwargs["position_ids"] = torch.arange(padding + 1, padding + 1 + len(prompt))[None]
    hidden = inner(ids, attention_mask=torch.ones_like(ids), **kwargs).last_hidden_state[0]
    vector = OVER[over](hidden)
    return vector / vector.norm() if normalize else vector


def embed(core: EngineCore, prompts: list[list[int]], params: PoolingParams | None = None) -> torch.Tensor:
    results = embed_all(core, prompts, [params or PoolingParams()] * len(prompts), 0, False)
    core.check_integrity()
    return torch.tensor([result.outputs.embedding for result in results])


def test_a_bert_of_old_files_is_the_same_model(tmp_path: Path) -> None:
    """As google-bert/bert-base-uncased is stored: norms have a gamma and a beta."""
    cls, config = ENCODERS["BertForMaskedLM: a head that is left out"]
    model = make_model(cls, config())
    file = save(model, tmp_path) / "model.safetensors"
    renamed = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    tensors = load_file(file)
    for new, old in renamed.items():
        tensors = {name.replace(new, old): tensor for name, tensor in tensors.items()}
    save_file(tensors, file)
    wanted = reference(model, [1, 2, 3], "cls_token")
    torch.testing.assert_close(embed(start(tmp_path)[0], [[1, 2, 3]])[0], wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoders_vectors_are_those_of_transformers_alone_and_in_a_batch(tmp_path: Path, name: str) -> None:
    cls, config = ENCODERS[name]
    model = make_model(cls, config())
    core, info = start(save(model, tmp_path), num_gpu_blocks_override=None)
    prompts = [*mixed_prompts(12, 100), [5] * info.max_model_len]
    wanted = torch.stack([reference(model, prompt, "cls_token") for prompt in prompts])
    torch.testing.assert_close(embed(core, prompts), wanted, atol=1e-5, rtol=0)
    for prompt, own in zip(prompts[:4], wanted, strict=False):
        torch.testing.assert_close(embed(core, [prompt])[0], own, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", HEADLESS)
def test_a_decoder_without_a_head_gives_its_last_tokens_hidden_state(tmp_path: Path, name: str) -> None:
    model = headless(name)
    core, _ = start(save(model, tmp_path))
    prompts = mixed_prompts(12, 100)
    wanted = torch.stack([reference(model, prompt, "lasttoken") for prompt in prompts])
    torch.testing.assert_close(embed(core, prompts), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", OVER)
@pytest.mark.parametrize("normalize", [True, False])
def test_prompts_in_chunks_are_pooled_as_modules_json_says(tmp_path: Path, mode: str, normalize: bool) -> None:
    model = headless("LlamaModel")
    save(model, tmp_path)
    write_modules(tmp_path, mode, normalize=normalize)
    core, _ = start(tmp_path, max_num_batched_tokens=16)
    prompts = [*mixed_prompts(12, 100)] * 2  # again: from the prefix cache, where one may be used
    wanted = torch.stack([reference(model, prompt, mode, normalize=normalize) for prompt in prompts])
    torch.testing.assert_close(embed(core, prompts), wanted, atol=1e-5, rtol=1e-5)
    hits = core.stats().prefix_cache_hits
    assert hits > 0 if mode == "lasttoken" else hits == 0


def test_an_encoder_pools_as_modules_json_says_and_takes_prompts_as_long_as_its_makers_meant(tmp_path: Path) -> None:
    cls, config = ENCODERS["BertModel: learned positions, token types"]
    model = make_model(cls, config())
    save(model, tmp_path)
    write_modules(tmp_path, "mean_tokens", normalize=False)
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 40}')
    core, info = start(tmp_path)
    prompt = mixed_prompts(1, 30)[0]
    wanted = reference(model, prompt, "mean_tokens", normalize=False)
    torch.testing.assert_close(embed(core, [prompt])[0], wanted, atol=1e-5, rtol=1e-5)
    assert info.max_model_len == 40


def test_a_checkpoint_with_a_head_embeds_by_its_modules_or_when_told_to(tmp_path: Path) -> None:
    cls, config = FAMILIES["qwen2"]
    model = make_model(cls, config())
    save(model, tmp_path)
    core, info = start(tmp_path, task="embed")
    assert info.pooling is not None
    wanted = reference(model, [1, 2, 3], "lasttoken")
    torch.testing.assert_close(embed(core, [[1, 2, 3]])[0], wanted, atol=1e-5, rtol=0)
    assert start(tmp_path)[1].pooling is None
    write_modules(tmp_path, "lasttoken", normalize=True)
    assert start(tmp_path)[1].pooling == info.pooling
    assert start(tmp_path, task="generate")[1].pooling is None


def test_a_vector_is_cut_to_the_dimensions_that_it_was_trained_for_and_is_normalised_anew(tmp_path: Path) -> None:
    model = headless("LlamaModel")
    save(model, tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(written | {"matryoshka_dimensions": [16, 32]}))
    core, _ = start(tmp_path)
    whole = reference(model, [1, 2, 3], "lasttoken", normalize=False)
    cut = whole[:16] / whole[:16].norm()
    torch.testing.assert_close(embed(core, [[1, 2, 3]], PoolingParams(dimensions=16))[0], cut, atol=1e-5, rtol=0)
    raw = embed(core, [[1, 2, 3]], PoolingParams(normalize=False))[0]
    torch.testing.assert_close(raw, whole, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="made to be cut to one of 16, 32"):
        embed(core, [[1, 2, 3]], PoolingParams(dimensions=17))


def test_a_prompt_that_gives_way_halfway_still_counts_all_of_its_tokens(tmp_path: Path) -> None:
    model = headless("LlamaModel")
    save(model, tmp_path)
    write_modules(tmp_path, "mean_tokens", normalize=True)
    core, _ = start(tmp_path, max_num_batched_tokens=16, num_gpu_blocks_override=18, scheduling_policy="priority")
    prompts = {"low": [7] * 60 + [9] * 40, "high": list(range(50, 120))}
    core.add_request(EngineRequest("low", prompts["low"], SamplingParams(), priority=1, pooling=PoolingParams()))
    assert core.step() == []  # it has begun
    core.add_request(EngineRequest("high", prompts["high"], SamplingParams(), pooling=PoolingParams()))
    vectors = {}
    while core.has_work():
        for output in core.step():
            vectors[output.request_id] = output.embedding
        core.check_integrity()
    assert [*vectors] == ["high", "low"]
    assert core.stats().num_preemptions == 1
    for name, prompt in prompts.items():
        wanted = reference(model, prompt, "mean_tokens")
        torch.testing.assert_close(torch.tensor(vectors[name]), wanted, atol=1e-5, rtol=0)


def test_prompts_that_do_not_fit_are_refused_and_those_that_just_fit_are_not(tmp_path: Path) -> None:
    core, info = start(save(headless("LlamaModel"), tmp_path))
    assert embed(core, [[1] * info.max_model_len]).shape == (1, 64)
    with pytest.raises(ValueError, match=r"maximum context length is 128 tokens\. However, the prompt has 129"):
        embed(core, [[1] * (info.max_model_len + 1)])


def test_a_decoder_that_looks_ahead_is_refused(tmp_path: Path) -> None:
    save(headless("Qwen2Model"), tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(written | {"is_causal": False}))
    with pytest.raises(StartupError, match="tokens of this Qwen2Model see those behind them"):
        start(tmp_path)


def test_what_no_model_can_do_is_refused_at_the_start(tmp_path: Path) -> None:
    save(headless("LlamaModel"), tmp_path)
    with pytest.raises(StartupError, match="--task is generate and LlamaModel has no output head"):
        start(tmp_path, task="generate")
    write_modules(tmp_path, "max_tokens", normalize=True)
    with pytest.raises(StartupError, match="pools by nothing"):
        start(tmp_path)
