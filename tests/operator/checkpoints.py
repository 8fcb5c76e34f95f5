"""Checkpoints for tests of the plan: config.json, and safetensors files whose weights nobody reads."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

LLAMA_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192},
}
SMALL: dict[str, Any] = {
    **LLAMA_8B,
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rope_scaling": None,
}
FACTS = (
    '{"shape": {"architecture": "LlamaForCausalLM", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, '
    '"num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "kv_width": 32, '
    '"num_experts": 1, "experts_per_token": 1, "expert_size": 128, '
    '"max_position_embeddings": 512, "dtype": "bfloat16", "tied_embeddings": false}, '
    '"weights": {"split": 106496, "kv": 8192, "whole": 320, "stored": 0, "float32": 0, "linear": 81920}, '
    '"longest": 512, "quantization": null}'
)
"""What `quire-engine inspect` says of a checkpoint of SMALL."""

_SIZES = {"F32": 4, "BF16": 2, "F16": 2}


def tensors_of(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Llama's weights."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = hidden // config["num_attention_heads"]
    kv = config["num_key_value_heads"] * head
    layer = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    return {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        **{
            f"model.layers.{number}.{name}.weight": shape
            for number in range(config["num_hidden_layers"])
            for name, shape in layer.items()
        },
        "model.norm.weight": (hidden,),
        "lm_head.weight": (config["vocab_size"], hidden),
    }


def write_checkpoint(directory: Path, config: dict[str, Any], *, dtype: str = "BF16", files: int = 1) -> Path:
    """Write config.json and `files` safetensors files, with an index when they are several; weights are holes."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    tensors = list(tensors_of(config).items())
    names = (
        ["model.safetensors"] if files == 1 else [f"model-{n + 1:05}-of-{files:05}.safetensors" for n in range(files)]
    )
    for number, name in enumerate(names):
        _write(directory / name, dict(tensors[number::files]), dtype)
    if files > 1:
        where = {tensor: names[i % files] for i, (tensor, _) in enumerate(tensors)}
        (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return directory


def _write(file: Path, tensors: dict[str, tuple[int, ...]], dtype: str) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors.items():
        start, end = end, end + math.prod(shape) * _SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)
