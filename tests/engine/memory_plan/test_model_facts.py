"""What is known of a model fits into a termination message, survives it, and nothing else is taken for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quire_engine.cli import main
from quire_engine.memory_plan.model_facts import ModelFacts
from quire_engine.memory_plan.safetensors_header import TensorHeader
from tests.operator.checkpoints import FACTS, LLAMA_8B, SMALL, write_checkpoint

MESSAGE_BYTES = 4096
"""What the kubelet keeps of a termination message."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), LLAMA_8B, files=4)


def test_facts_are_the_same_after_a_message(checkpoint: Path) -> None:
    facts = ModelFacts.of_directory(checkpoint)
    text = facts.to_json()
    assert ModelFacts.from_json(text) == facts
    assert len(text.encode()) < MESSAGE_BYTES
    assert facts.parameters == 8_030_261_248


def test_a_checkpoint_is_inspected_without_its_weights(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(checkpoint)]) == 0
    assert ModelFacts.from_json(capsys.readouterr().out) == ModelFacts.of_directory(checkpoint)


def test_what_was_found_can_be_written_to_a_file(checkpoint: Path, tmp_path: Path) -> None:
    assert main(["inspect", str(checkpoint), f"--output={tmp_path / 'log'}"]) == 0
    assert ModelFacts.from_json((tmp_path / "log").read_text()).longest == 131072


def test_a_decoder_within_a_model_of_images_has_what_its_config_leaves_out() -> None:
    """As llava-hf/llava-1.5-7b-hf has it: what is LlamaConfig's own is not written down."""
    text = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": 4096}
    facts = ModelFacts.of(
        {
            "architectures": ["LlavaForConditionalGeneration"],
            "image_token_index": 32000,
            "text_config": text | {"rms_norm_eps": 1e-05, "torch_dtype": "float16", "vocab_size": 32064},
            "torch_dtype": "float16",
            "vision_config": {"model_type": "clip_vision_model", "num_hidden_layers": 24},
        },
        {
            "language_model.lm_head.weight": TensorHeader("F16", (32064, 4096), 262668288),
            "vision_tower.vision_model.encoder.layers.23.self_attn.k_proj.weight": TensorHeader(
                "F16", (1024, 1024), 2097152
            ),
            "vision_tower.vision_model.embeddings.position_ids": TensorHeader("I64", (1, 577), 4616),
            "vision_tower.vision_model.post_layernorm.weight": TensorHeader("F16", (1024,), 2048),
        },
    )
    shape = facts.shape
    assert (shape.hidden_size, shape.num_layers, shape.num_heads, shape.num_kv_heads) == (4096, 32, 32, 32)
    assert (shape.intermediate_size, shape.vocab_size, shape.dtype, facts.longest) == (11008, 32064, "float16", 4096)
    assert (facts.weights.split, facts.weights.whole) == (32064 * 4096, 1024 * 1024)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json: name the directory of a checkpoint"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json does not parse"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json holds no JSON object"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no safetensors files"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"torch"), "model.safetensors"),
    ],
)
def test_what_is_no_checkpoint_ends_with_1_and_one_line(
    spoil: Any, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_checkpoint(tmp_path, SMALL)
    spoil(tmp_path)
    assert main(["inspect", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


def message(**changed: Any) -> str:
    """Facts of a model, with fields of its shape or its weights set to something else."""
    values = json.loads(FACTS)
    for name, value in changed.items():
        where = values if name in values else values["shape"] if name in values["shape"] else values["weights"]
        where[name] = value
    return json.dumps(values)


def test_the_message_of_an_older_engine_is_still_understood() -> None:
    assert ModelFacts.from_json(FACTS).parameters == 115008


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "Traceback (most recent call last):",
        '{"shape": {}}',
        message(num_heads=0),
        message(num_kv_heads=3),
        message(num_layers=True),
        message(hidden_size="64"),
        message(vocab_size=1 << 70),
        message(split=-1),
        message(stored=0.5),
        message(dtype="int3"),
        message(tied_embeddings=0),
        message(longest=0),
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="facts of"):
        ModelFacts.from_json(text)
