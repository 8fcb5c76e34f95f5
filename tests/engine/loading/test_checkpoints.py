"""What is wrong with a checkpoint is said in one line: what, where, and what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from quire_engine.config import EngineConfig
from quire_engine.engine import StartupError, build_engine
from quire_engine.layers.linear import create_weights
from quire_engine.loading.checkpoint import Checkpoint
from quire_engine.loading.weights import draw_weights, weight_shards
from quire_engine.memory_plan.model_facts import ModelFacts
from quire_engine.models.decoder import CausalLM
from quire_engine.models.registry import decoder_spec
from tests.engine.models.checkpoints import FAMILIES, make_model, save

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cls, config = FAMILIES["llama"]
    return save(make_model(cls, config()), tmp_path_factory.mktemp("sound"))


@pytest.fixture
def model_dir(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "model"))


def start(model: Path | str, **changes: Any) -> None:
    build_engine(EngineConfig(model=str(model), device="cpu", **changes))


def edit_config(model_dir: Path, **changes: Any) -> None:
    file = model_dir / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def edit_weights(model_dir: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = model_dir / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("break_it", "reason", "message"),
    [
        (lambda d: (d / "config.json").unlink(), "InvalidCheckpoint", "has no config.json"),
        (lambda d: (d / "config.json").write_text("{"), "InvalidCheckpoint", "cannot be read as JSON"),
        (
            lambda d: edit_config(d, architectures=["MambaForCausalLM"]),
            "UnsupportedModel",
            "MambaForCausalLM is not one that transformers .* runs: it knows model_type .llama. as LlamaForCausalLM",
        ),
        (lambda d: edit_config(d, architectures=...), "UnsupportedModel", 'no "architectures"'),
        (lambda d: edit_config(d, hidden_size=...), "UnsupportedModel", "no 'hidden_size'"),
        (lambda d: edit_config(d, hidden_act="swoosh"), "UnsupportedModel", "hidden_act is 'swoosh'"),
        (
            lambda d: edit_config(d, rope_parameters={"rope_type": "spiral", "factor": 2.0}),
            "UnsupportedModel",
            "the rope type 'spiral' is not supported: use one of default, linear",
        ),
        (
            lambda d: edit_config(d, quantization_config={"quant_method": "bitsandbytes"}),
            "UnsupportedModel",
            "quant_method .bitsandbytes. is not supported: there are awq",
        ),
        (lambda d: (d / "model.safetensors").unlink(), "InvalidCheckpoint", "has no safetensors files"),
        (
            lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"),
            "InvalidCheckpoint",
            "only pytorch_model.bin: convert the weights to safetensors",
        ),
        (
            lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-100]),
            "InvalidCheckpoint",
            "cut off",
        ),
        (lambda d: (d / "model.safetensors").write_bytes(b"<html>"), "InvalidCheckpoint", "not a safetensors file"),
        (
            lambda d: edit_weights(d, lambda t: t.pop("model.norm.weight")),
            "InvalidCheckpoint",
            "lacks 1 of .* tensors, model.norm.weight",
        ),
        (
            lambda d: edit_weights(d, lambda t: t.update({"model.extra.weight": torch.zeros(1)})),
            "InvalidCheckpoint",
            "holds model.extra.weight",
        ),
        (
            lambda d: edit_config(d, intermediate_size=112),
            "InvalidCheckpoint",
            r"shape \[.*\] and config.json asks for",
        ),
    ],
)
def test_a_broken_checkpoint_is_refused_with_its_fault(
    model_dir: Path, break_it: Callable[[Path], object], reason: str, message: str
) -> None:
    break_it(model_dir)
    with pytest.raises(StartupError, match=message) as caught:
        start(model_dir)
    assert caught.value.reason == reason
    assert str(caught.value).startswith(f"{reason}: ")
    assert "\n" not in str(caught.value)


def test_a_tensor_of_another_shape_is_found_before_any_is_read(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = "model.norm.weight"
    edit_weights(model_dir, lambda t: t.update({last: t[last][:-1].clone()}))
    read: list[object] = []
    monkeypatch.setattr("quire_engine.loading.readers.fill", lambda parts, *_: read.append(parts))
    with pytest.raises(StartupError, match=rf"{last}.* has the shape|shape \[.*\] and config.json asks for"):
        start(model_dir)
    assert read == []


@pytest.mark.parametrize(
    ("changes", "reason", "message"),
    [
        ({"max_model_len": 4096}, "InvalidFlag", "--max-model-len is 4096: the model's positions end at 128"),
        (
            {"enable_chunked_prefill": False, "max_num_batched_tokens": 64},
            "InvalidFlag",
            "raise it to --max-model-len, 128",
        ),
        (
            {"num_gpu_blocks_override": 2},
            "InsufficientMemory",
            "raise --num-gpu-blocks-override to 8, or set --max-model-len to at most 32",
        ),
        ({"kv_cache_memory_bytes": 10_000}, "InsufficientMemory", "raise --kv-cache-memory-bytes to 65536"),
        ({"gpu_memory_utilization": 0.001}, "InsufficientMemory", "raise the container's memory limit"),
    ],
)
def test_a_setting_that_does_not_fit_the_model_is_refused_with_the_flag(
    sound: Path, changes: dict[str, Any], reason: str, message: str
) -> None:
    with pytest.raises(StartupError, match=message) as caught:
        start(sound, **changes)
    assert caught.value.reason == reason


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_missed(sound: Path) -> None:
    with pytest.raises(StartupError, match="torch finds no GPU: use --device cpu"):
        build_engine(EngineConfig(model=str(sound), device="cuda"))


def test_a_missing_directory_is_named() -> None:
    with pytest.raises(StartupError, match="ModelNotFound: the directory /does/not/exist does not exist"):
        start("/does/not/exist")


def test_a_shard_that_the_index_names_is_missed(tmp_path: Path) -> None:
    cls, config = FAMILIES["llama"]
    save(make_model(cls, config()), tmp_path, max_shard_size="100KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(StartupError, match=f"lacks {shard.name}"):
        start(tmp_path)


def test_dummy_weights_need_no_files_and_follow_the_seed(model_dir: Path) -> None:
    (model_dir / "model.safetensors").unlink()
    start(model_dir, load_format="dummy")
    spec = decoder_spec(Checkpoint.open(str(model_dir)).config)
    models = [CausalLM(spec) for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        create_weights(model)
        draw_weights(model, seed)
    first, same, other = (m.get_parameter("model.layers.0.mlp.down_proj.weight") for m in models)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_has_one_name_in_the_checkpoint(family: str) -> None:
    cls, config = FAMILIES[family]
    reference = make_model(cls, config())
    model = CausalLM(decoder_spec({**reference.config.to_dict(), "architectures": [cls.__name__]}))
    create_weights(model)
    shards = weight_shards(model)
    assert shards.keys() == dict(reference.named_parameters()).keys()
    assert sum(s.target.numel() for s in shards.values()) == sum(p.numel() for p in model.parameters())


def test_phases_of_the_start_are_timed(sound: Path) -> None:
    heard: list[str] = []
    _, info = build_engine(EngineConfig(model=str(sound), device="cpu"), lambda name, _: heard.append(name))
    assert heard == ["device", "config", "weights", "memory", "warm-up"] == list(info.startup_seconds)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_weights_are_served_and_planned_in_their_own_type_where_config_names_none(
    model_dir: Path, dtype: torch.dtype
) -> None:
    edit_config(model_dir, dtype=None, torch_dtype=None)
    edit_weights(model_dir, lambda tensors: tensors.update({k: v.to(dtype) for k, v in tensors.items()}))
    _, info = build_engine(EngineConfig(model=str(model_dir), device="cpu", num_gpu_blocks_override=64))
    assert info.dtype == ModelFacts.of_directory(model_dir).shape.dtype == str(dtype).removeprefix("torch.")
