"""A model whose work the kernels do answers as it does by torch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from quire_engine.attention.context import PrefillSpan
from quire_engine.config import EngineConfig
from quire_engine.core.messages import EngineRequest
from quire_engine.engine import build_engine
from quire_engine.kernels import choice
from quire_engine.sampling_params import SamplingParams
from tests.engine.models.checkpoints import ALL, MAX_MODEL_LEN, greedy_reference, make_model, mixed_prompts, save

pytestmark = pytest.mark.usefixtures("one_thread")

LLAMA = "LlamaForCausalLM: grouped heads"
CASES = [
    LLAMA,
    "Gemma2ForCausalLM: alternating window, soft-capped scores and logits",
    "BloomForCausalLM: ALiBi, norm behind the embedding",
    "DeepseekV3ForCausalLM: latent attention, corrected choice of experts",
]
MORE_CASES = [
    "MistralForCausalLM: sliding window",
    "Qwen3ForCausalLM: norm of each head",
    "GPTJForCausalLM: parallel block, first neighbours rotated, biased head",
    "MixtralForCausalLM: experts",
]
NEW_TOKENS = 3
GREEDY = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS)


@pytest.fixture
def by_kernels(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The kernels are used, on the CPU too. Gives the layers that attend by them."""
    from quire_engine.attention.kernel_attention import KernelAttention
    from quire_engine.attention.kernel_latent_attention import KernelLatentAttention

    used: list[Any] = []

    def counted(attend: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def run(self: Any, *operands: Any, **more: Any) -> torch.Tensor:
            used.append(self)
            return attend(self, *operands, **more)

        return run

    monkeypatch.setattr(KernelAttention, "attend", counted(KernelAttention.attend))
    monkeypatch.setattr(KernelLatentAttention, "chunks", counted(KernelLatentAttention.chunks))
    monkeypatch.setattr(choice, "interpreted_on_cpu", True)
    return used


def answers_of(
    directory: Path, device: torch.device, prompts: list[list[int]], params: SamplingParams
) -> list[list[int]]:
    """In chunks of at most 8 tokens, decodes of other requests beside them."""
    settings = {"block_size": 8, "max_model_len": MAX_MODEL_LEN, "num_gpu_blocks_override": 64}
    core, _ = build_engine(
        EngineConfig(model=str(directory), device=device.type, dtype="float32", max_num_batched_tokens=8, **settings)
    )
    answers: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        answers[str(i)] = []
        core.add_request(EngineRequest(str(i), prompt, params))
    while core.has_work():
        for output in core.step():
            answers[output.request_id] += output.new_token_ids
    return [answers[str(i)] for i in range(len(prompts))]


@pytest.mark.parametrize("family", [*CASES, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE_CASES)])
def test_prompts_in_chunks_and_decodes_are_answered_as_transformers_answers_each_alone(
    family: str, device: torch.device, by_kernels: list[Any], tmp_path: Path
) -> None:
    cls, config = ALL[family]
    model, prompts = make_model(cls, config()), mixed_prompts(3, 16)
    save(model, tmp_path)
    assert answers_of(tmp_path, device, prompts, GREEDY) == greedy_reference(model, prompts, NEW_TOKENS)
    assert by_kernels


def test_drawn_answers_are_those_of_torch(
    device: torch.device, by_kernels: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls, config = ALL[LLAMA]
    save(make_model(cls, config()), tmp_path)
    prompts = mixed_prompts(2, 9)
    params = SamplingParams(temperature=1.3, top_k=40, top_p=0.9, min_p=0.01, seed=7, max_tokens=NEW_TOKENS)
    found = answers_of(tmp_path, device, prompts, params)
    assert by_kernels
    monkeypatch.setattr(choice, "interpreted_on_cpu", False)
    assert answers_of(tmp_path, torch.device("cpu"), prompts, params) == found


def test_without_a_gpu_torch_attends_and_triton_is_not_imported() -> None:
    program = """
import sys, torch
from quire_engine.attention.paged_attention import PagedAttention
import quire_engine.engine
layer = PagedAttention(2, 1, 16)
layer.bind(torch.zeros(4, 8, 1, 16), torch.zeros(4, 8, 1, 16), 64)
assert layer.kernels is None
assert not [name for name in sys.modules if name.partition(".")[0] == "triton" or "kernels.gpu" in name]
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(("triton", "room", "ours"), [(True, True, True), (False, True, False), (True, False, False)])
def test_a_gpu_without_triton_or_room_for_its_tiles_is_left_to_torch(
    monkeypatch: pytest.MonkeyPatch, triton: bool, room: bool, ours: bool
) -> None:
    monkeypatch.setattr(choice, "has_triton", lambda: triton)
    monkeypatch.setattr(choice, "has_room", lambda index: room)
    assert choice.by_gpu_kernels(torch.device("cuda", 0)) is ours


@pytest.mark.parametrize("text", ["off", "0", "False"])
def test_kernels_can_be_turned_off(text: str) -> None:
    program = """
from quire_engine.kernels import choice, cpu
assert not choice.has_triton()
assert cpu.library is None
"""
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | {"QUIRE_KERNELS": text})


def test_tiles_with_most_keys_come_first(device: torch.device) -> None:
    from quire_engine.attention.kernel_attention import tiles_of

    blocks = torch.zeros(9, dtype=torch.int64)
    spans = [PrefillSpan(0, 9, 0, blocks), PrefillSpan(9, 5, 30, blocks)]
    assert tiles_of(spans, 4) == [(1, 4), (1, 0), (0, 8), (0, 4), (0, 0)]
