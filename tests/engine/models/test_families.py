"""Every family's logits and greedy answers in float32 are those of transformers' own class."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from quire_engine.attention.context import AttentionContext, PrefillSpan, attention_context
from quire_engine.core.loop import EngineCore
from quire_engine.memory_plan.model_facts import ModelFacts
from tests.engine.models.checkpoints import ALL, check_greedy, greedy_reference, make_model, mixed_prompts, save
from tests.engine.models.test_greedy_equality import LONGEST, NEW_TOKENS, answer, build

pytestmark = pytest.mark.usefixtures("one_thread")

BLOCK_SIZE = 8


@torch.no_grad()
def logits_of(core: EngineCore, prompt: list[int]) -> torch.Tensor:
    """The engine's logits [len(prompt), vocab_size] after each token of `prompt`, computed in one step."""
    model: Any = core._executor._model  # type: ignore[attr-defined]  # the seam names no model
    count = len(prompt)
    span = PrefillSpan(0, count, 0, torch.arange(-(-count // BLOCK_SIZE)))
    context = AttentionContext(
        torch.arange(count), 0, [], torch.zeros(0, 0, dtype=torch.int64), [span], torch.full((count,), count)
    )
    with attention_context(context):
        logits: torch.Tensor = model.logits(model(torch.tensor(prompt), torch.arange(count)))
    return logits


def make(name: str, directory: Path) -> PreTrainedModel:
    transformers.utils.logging.disable_progress_bar()
    cls, config = ALL[name]
    model = make_model(cls, config(), seed=1)
    save(model, directory)
    return model


@pytest.mark.parametrize("name", ALL)
def test_logits_and_greedy_answers_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    model = make(name, tmp_path)
    prompts = mixed_prompts(5, LONGEST, seed=1)
    core = build(tmp_path, max_num_batched_tokens=32, block_size=BLOCK_SIZE)
    with torch.no_grad():
        expected = deepcopy(model)(torch.tensor([prompts[0]]), use_cache=False).logits[0]
    torch.testing.assert_close(logits_of(core, prompts[0]), expected, rtol=0, atol=1e-4)
    answers = answer(core, prompts)
    assert check_greedy(model, prompts, answers) == 0
    assert answer(core, prompts[:1]) == answers[:1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_60_prompts_in_chunks_are_answered_as_transformers_generates(name: str, tmp_path: Path) -> None:
    model = make(name, tmp_path)
    prompts = mixed_prompts(60, LONGEST, seed=2)
    core = build(tmp_path, max_num_batched_tokens=19, block_size=BLOCK_SIZE)
    answers = answer(core, prompts)
    assert check_greedy(model, prompts, answers) == 0
    assert greedy_reference(model, prompts[:3], NEW_TOKENS) == answers[:3]


def test_a_checkpoint_may_leave_out_prefixes_and_carry_masks(tmp_path: Path) -> None:
    """As GPT-2 is on the hub."""
    model = make("GPT2LMHeadModel: learned positions", tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
    save_file(tensors | {f"h.{i}.attn.bias": torch.ones(1, 1, 128, 128) for i in range(2)}, file)
    prompts = mixed_prompts(3, LONGEST)
    assert check_greedy(model, prompts, answer(build(tmp_path), prompts)) == 0
    facts = ModelFacts.of_directory(tmp_path)
    parameters = sum(p.numel() for p in model.parameters())
    assert facts.weights.elements == parameters
