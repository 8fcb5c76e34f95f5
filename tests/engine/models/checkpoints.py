"""Small random checkpoints by transformers' own classes, and its own greedy answers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCAB_SIZE = 128
MAX_MODEL_LEN = 128
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_MODEL_LEN,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
FAMILIES: dict[str, tuple[type[PreTrainedModel], Any]] = {
    "llama": (LlamaForCausalLM, lambda: LlamaConfig(**SIZES)),
    "mistral": (MistralForCausalLM, lambda: MistralConfig(**SIZES, sliding_window=20)),
    "qwen2": (Qwen2ForCausalLM, lambda: Qwen2Config(**SIZES)),
    "qwen3": (Qwen3ForCausalLM, lambda: Qwen3Config(**SIZES, head_dim=24)),
}
VARIANTS: dict[str, tuple[type[PreTrainedModel], Any]] = {
    "llama, tied, with biases and llama3 rope": (
        LlamaForCausalLM,
        lambda: LlamaConfig(
            **SIZES, tie_word_embeddings=True, attention_bias=True, mlp_bias=True, rope_parameters=LLAMA3_ROPE
        ),
    ),
    "mistral without a window": (MistralForCausalLM, lambda: MistralConfig(**SIZES, sliding_window=None)),
    "qwen2 with a window on its second layer": (
        Qwen2ForCausalLM,
        lambda: Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=20, max_window_layers=1),
    ),
    "qwen3, tied": (Qwen3ForCausalLM, lambda: Qwen3Config(**SIZES, head_dim=24, tie_word_embeddings=True)),
}


def make_model(cls: type[PreTrainedModel], config: Any, seed: int = 0) -> PreTrainedModel:
    """A model in float32 whose every weight matters: no zero biases, no norms of ones."""
    torch.manual_seed(seed)
    model = cls(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.2)
    model.tie_weights()
    return model


def save(model: PreTrainedModel, directory: Path, **options: Any) -> Path:
    model.save_pretrained(directory, **options)
    return directory


def mixed_prompts(count: int, longest: int, seed: int = 0) -> list[list[int]]:
    """Prompts of 1 to `longest` tokens. A third begin alike, and some are there twice."""
    rng = random.Random(seed)
    shared = [rng.randrange(VOCAB_SIZE) for _ in range(longest)]
    prompts = []
    for i in range(count):
        prompt = [rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(1, longest))]
        if i % 3 == 0:
            prompt = (shared[: rng.randint(1, longest)] + prompt)[:longest]
        if i % 13 == 12:
            prompt = list(prompts[-1])
        prompts.append(prompt)
    return prompts


def greedy_reference(model: PreTrainedModel, prompts: list[list[int]], count: int) -> list[list[int]]:
    """What `generate` answers to each prompt alone."""
    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        # Without a mask, generate would take the tokens that happen to be the padding's id for padding.
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
        answers.append(out[0, len(prompt) :].tolist())
    return answers
