"""Small random checkpoints by transformers' own classes, and its own greedy answers."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from tests.engine.models.families import CASES, ENCODER_CASES
from tests.engine.models.family import MAX_MODEL_LEN, SIZES, VOCAB_SIZE

__all__ = ["MAX_MODEL_LEN", "SIZES", "VOCAB_SIZE"]


def _case(name: str) -> tuple[type[PreTrainedModel], Any]:
    family, settings = (CASES | ENCODER_CASES)[name]
    config = getattr(transformers, family.config)
    # A config of nested ones takes them out of what it is given.
    return getattr(transformers, family.architecture), lambda: config(**copy.deepcopy(settings))


ALL: dict[str, tuple[type[PreTrainedModel], Any]] = {name: _case(name) for name in CASES}
"""The class and a function that gives the config, by name."""

ENCODERS: dict[str, tuple[type[PreTrainedModel], Any]] = {name: _case(name) for name in ENCODER_CASES}
"""Likewise, of those that make embeddings."""

FAMILIES = {
    "llama": ALL["LlamaForCausalLM: grouped heads"],
    "mistral": ALL["MistralForCausalLM: sliding window"],
    "qwen2": ALL["Qwen2ForCausalLM: biases"],
    "qwen3": ALL["Qwen3ForCausalLM: norm of each head"],
}
"""Those that are tried in every way, for what does not depend on the family."""


def make_model(cls: type[PreTrainedModel], config: Any, seed: int = 0) -> PreTrainedModel:
    """A model in float32 whose every weight matters: no zero biases, no norms of ones."""
    torch.manual_seed(seed)
    model = cls(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.2)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(0.0, 0.2)
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
    # Where a longrope changes all is computed anew, but Phi-4-multimodal is given the last token alone by its cache.
    parameters = getattr(model.config, "rope_parameters", None) or {}
    use_cache = parameters.get("rope_type") != "longrope"
    for prompt in prompts:
        ids = torch.tensor([prompt])
        # A dynamic rope remembers the longest sequence that it has seen.
        fresh = copy.deepcopy(model)
        # Without a mask, generate would take the tokens that happen to be the padding's id for padding.
        out = fresh.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, use_cache=use_cache
        )
        answers.append(out[0, len(prompt) :].tolist())
    return answers


@torch.no_grad()
def check_greedy(model: PreTrainedModel, prompts: list[list[int]], answers: list[list[int]]) -> int:
    """Raise `AssertionError` where an answer's token is not the best one after those before it.

    Where the two best logits are closer than 1e-3, another choice is excused: the rest of that answer is not looked
    at. Returns the number of answers that were excused.
    """
    parameters = getattr(model.config, "rope_parameters", None) or {}
    if parameters.get("rope_type") in ("dynamic", "longrope"):
        # What a token was computed with depends on how long the sequence was then: it takes every step.
        assert answers == greedy_reference(model, prompts, len(answers[0]))
        return 0
    excused = 0
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([prompt + answer])
        logits = model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        for i, token in enumerate(answer):
            best = logits[i].topk(2)
            if token != int(best.indices[0]):
                assert token == int(best.indices[1]), f"token {i} of the answer to {prompt} is {token}"
                assert float(best.values[0] - best.values[1]) < 1e-3, f"token {i} of the answer to {prompt} is {token}"
                excused += 1
                break
    return excused
