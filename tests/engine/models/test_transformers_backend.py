"""Models that Quire has no family for are run by transformers, and answered as transformers answers alone."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import (
    BambaConfig,
    BambaForCausalLM,
    ElectraConfig,
    ElectraModel,
    GlmConfig,
    GlmForCausalLM,
    GPTJConfig,
    GPTJForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    HeliumConfig,
    HeliumForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PersimmonConfig,
    PersimmonForCausalLM,
    PreTrainedModel,
    Starcoder2Config,
    Starcoder2ForCausalLM,
)

from quire_engine.config import EngineConfig
from quire_engine.engine import StartupError, build_engine
from quire_engine.memory_plan.model_shape import ModelShape
from quire_engine.models.transformers_backend.one_at_a_time import OneAtATime
from quire_engine.models.transformers_backend.paged import PagedTransformers
from quire_engine.models.transformers_backend.rehearsal import rehearse
from tests.engine.models.checkpoints import SIZES, greedy_reference, make_model, mixed_prompts, save
from tests.engine.models.test_greedy_equality import LONGEST, NEW_TOKENS, answer, build

pytestmark = pytest.mark.usefixtures("one_thread")

NO_TOKENS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
GPTJ: dict[str, Any] = {"vocab_size": 128, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "rotary_dim": 8}
BAMBA: dict[str, Any] = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}
PAGED: dict[str, tuple[type[PreTrainedModel], Any]] = {
    "llama": (LlamaForCausalLM, lambda: LlamaConfig(**SIZES)),
    "starcoder2, with a window": (Starcoder2ForCausalLM, lambda: Starcoder2Config(**SIZES, sliding_window=20)),
    "persimmon": (PersimmonForCausalLM, lambda: PersimmonConfig(**SIZES)),
    "glm": (GlmForCausalLM, lambda: GlmConfig(**SIZES, head_dim=16)),
    "helium": (HeliumForCausalLM, lambda: HeliumConfig(**SIZES, head_dim=16)),
    "gpt-j": (GPTJForCausalLM, lambda: GPTJConfig(**GPTJ, **NO_TOKENS)),
}
ALONE: dict[str, tuple[type[PreTrainedModel], Any, str]] = {
    "mamba": (
        MambaForCausalLM,
        lambda: MambaConfig(vocab_size=128, hidden_size=32, state_size=8, num_hidden_layers=2, **NO_TOKENS),
        "its attention cannot be replaced",
    ),
    "bamba": (
        BambaForCausalLM,
        lambda: BambaConfig(**SIZES, **BAMBA, attn_layer_indices=[1]),
        "its attention cannot be replaced",
    ),
    "gpt-oss": (
        GptOssForCausalLM,
        lambda: GptOssConfig(**SIZES, head_dim=16, num_local_experts=4, sliding_window=20),
        "its attention takes s_aux",
    ),
    "llama, dynamic rope": (
        LlamaForCausalLM,
        lambda: LlamaConfig(**SIZES, rope_parameters=DYNAMIC),
        "its dynamic rope depends on the longest sequence of a batch",
    ),
}


@pytest.fixture(autouse=True)
def quiet() -> None:
    transformers.utils.logging.disable_progress_bar()


@pytest.mark.parametrize("name", PAGED)
def test_a_model_with_paged_attention_answers_as_transformers_does(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cls, config = PAGED[name]
    model = make_model(cls, config())
    prompts = mixed_prompts(10, LONGEST)
    with caplog.at_level(logging.INFO):
        core = build(save(model, tmp_path), max_num_batched_tokens=24, model_impl="transformers")
    assert f"{cls.__name__} runs by transformers, with Quire's paged attention" in caplog.text
    assert answer(core, prompts) == greedy_reference(model, prompts, NEW_TOKENS)
    assert core.stats().prefix_cache_hits > 0


@pytest.mark.parametrize("name", ALONE)
def test_a_model_whose_attention_cannot_be_replaced_answers_one_request_at_a_time(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cls, config, reason = ALONE[name]
    model = make_model(cls, config())
    prompts = mixed_prompts(4, LONGEST)
    core = build(
        save(model, tmp_path), max_num_batched_tokens=24, num_gpu_blocks_override=None, model_impl="transformers"
    )
    assert f"with its own cache, one request at a time: {reason}" in caplog.text
    assert core.config.max_num_seqs == 1
    assert answer(core, prompts) == greedy_reference(model, prompts, NEW_TOKENS)


def test_transformers_runs_what_quire_has_no_family_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, by_transformers in (("llama", False), ("helium", True)):
        cls, config = PAGED[name]
        caplog.clear()
        with caplog.at_level(logging.INFO):
            build(save(make_model(cls, config()), tmp_path / name))
        assert ("runs by transformers" in caplog.text) == by_transformers


def test_attention_that_sees_more_than_it_is_told_is_found_out(caplog: pytest.LogCaptureFixture) -> None:
    cls, config = PAGED["llama"]
    model = make_model(cls, config())
    shape = ModelShape.from_config({**config().to_dict(), "architectures": [cls.__name__], "dtype": "float32"})
    assert isinstance(rehearse(model, shape), PagedTransformers)
    model = make_model(cls, config())
    # Each token's embedding gains the one before it in the row, whichever sequence that is of.
    model.get_input_embeddings().register_forward_hook(lambda _, __, x: x + x.roll(1, dims=1))
    assert isinstance(rehearse(model, shape), OneAtATime)
    assert "with paged attention its logits are off by" in caplog.text


def test_the_cache_is_planned_as_it_is_allocated(tmp_path: Path) -> None:
    cls, config = PAGED["helium"]
    core = build(save(make_model(cls, config()), tmp_path), num_gpu_blocks_override=40)
    model: Any = core._executor._model  # type: ignore[attr-defined]  # the seam names no model
    allocated = sum(c.numel() * c.element_size() for a in model.attention_layers() for c in (a.k_cache, a.v_cache))
    assert allocated == model.shape.kv_bytes_per_token("float32") * 40 * 8


def test_dummy_weights_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    PAGED["helium"][1]().save_pretrained(tmp_path)
    edit_config(tmp_path, architectures=["GlmForCausalLM"])
    answers = [answer(build(tmp_path, load_format="dummy", seed=seed), [[1, 2, 3]]) for seed in (4, 4, 5)]
    assert answers[0] == answers[1] != answers[2]


def edit_config(directory: Path, **changes: Any) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("helium", {"num_hidden_layers": 3}, "lacks .* tensors, model.layers.2"),
        ("gpt-oss", {"num_local_experts": 5}, r"mlp.experts.down_proj has the shape \[4, 96, 64\] and"),
    ],
)
def test_what_does_not_fit_is_found_before_any_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, changes: dict[str, Any], message: str
) -> None:
    cls, config, *_ = (PAGED | ALONE)[name]
    directory = save(make_model(cls, config()), tmp_path)
    edit_config(directory, **changes)
    read: list[object] = []
    monkeypatch.setattr(transformers.modeling_utils, "safe_open", lambda *args, **_: read.append(args))
    settings = EngineConfig(model=str(directory), device="cpu", model_impl="transformers")
    with pytest.raises(StartupError, match=message) as caught:
        build_engine(settings)
    assert (read, str(caught.value).count("\n")) == ([], 0)


def test_what_is_wrong_with_a_checkpoint_is_said(tmp_path: Path) -> None:
    cls, config = PAGED["helium"]
    sound = save(make_model(cls, config()), tmp_path / "sound")
    encoder = save(ElectraModel(ElectraConfig(**{**SIZES, "num_hidden_layers": 1})), tmp_path / "encoder")

    def refused(directory: Path, message: str, **settings: Any) -> None:
        with pytest.raises(StartupError, match=message):
            build_engine(EngineConfig(model=str(directory), device="cpu", **settings))

    refused(
        encoder, "the architecture ElectraModel is not one that transformers .* runs: it knows model_type 'electra' as"
    )
    refused(sound, "HeliumForCausalLM is not supported: use one of", model_impl="quire")
    edit_config(sound, num_hidden_layers=3)
    refused(sound, "lacks .* tensors, model.layers.2")
    edit_config(sound, num_hidden_layers=1)
    refused(sound, "holds, beside those of config.json's model, .* tensors, model.layers.1")
    edit_config(sound, num_hidden_layers=2, intermediate_size=95)
    refused(sound, r"model.layers.0.mlp.down_proj.weight has the shape \[64, 96\] and config.json asks for \[64, 95\]")
    file = sound / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused(sound, "model.safetensors")
    edit_config(sound, model_type="unheard-of")
    refused(sound, "not one that transformers .* reads")
