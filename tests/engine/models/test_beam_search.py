"""Beam searches in float32 find what transformers' generate finds with as many beams, token for token."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from quire_engine.config import EngineConfig
from quire_engine.core.loop import EngineCore
from quire_engine.core.messages import EngineRequest
from quire_engine.engine import build_engine
from quire_engine.sampling_params import SamplingParams
from tests.engine.models.checkpoints import FAMILIES, MAX_MODEL_LEN, make_model, mixed_prompts, save

pytestmark = pytest.mark.usefixtures("one_thread")

EOS = [3, 17, 40, 41, 90]
PROMPTS = mixed_prompts(5, 60, seed=3)


@dataclass
class Checkpoint:
    model: PreTrainedModel
    directory: Path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Checkpoint:
    transformers.utils.logging.disable_progress_bar()
    cls, config = FAMILIES["llama"]
    settings = config()
    settings.eos_token_id = EOS
    model = make_model(cls, settings)
    return Checkpoint(model, save(model, tmp_path_factory.mktemp("beams")))


def build(checkpoint: Checkpoint, **changes: Any) -> EngineCore:
    settings = {"block_size": 8, "max_model_len": MAX_MODEL_LEN, "num_gpu_blocks_override": 256} | changes
    config = EngineConfig(model=str(checkpoint.directory), device="cpu", dtype="float32", **settings)
    return build_engine(config)[0]


def found(core: EngineCore, params: SamplingParams) -> list[list[list[int]]]:
    """The answers to each prompt, all searched at once."""
    answers: list[list[list[int]]] = [[] for _ in PROMPTS]
    for i, prompt in enumerate(PROMPTS):
        core.add_request(EngineRequest(str(i), prompt, params))
    while core.has_work():
        for output in core.step():
            assert output.beams is not None, output.error
            answers[int(output.request_id)] = [beam.token_ids for beam in output.beams]
        core.check_integrity()
    assert (core.stats().kv_cache_usage, core.stats().swap_usage) == (0.0, 0.0)
    return answers


def expected(model: PreTrainedModel, params: SamplingParams) -> list[list[list[int]]]:
    answers = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            num_beams=params.num_sequences,
            num_return_sequences=params.n,
            do_sample=False,
            max_new_tokens=params.max_tokens,
            min_new_tokens=params.min_tokens or None,
            length_penalty=params.length_penalty,
            early_stopping=params.early_stopping,
            eos_token_id=None if params.ignore_eos else EOS,
            pad_token_id=EOS[0],
        )
        answers.append([_to_end(row[len(prompt) :].tolist(), params) for row in out])
    return answers


def _to_end(tokens: list[int], params: SamplingParams) -> list[int]:
    ends = [] if params.ignore_eos else [i for i, token in enumerate(tokens) if token in EOS]
    return tokens[: ends[0] + 1] if ends else tokens


@pytest.mark.parametrize(
    "params",
    [
        {"n": 2},
        {"n": 4},
        {"n": 1, "best_of": 3, "length_penalty": 0.0},
        {"n": 4, "length_penalty": 2.5},
        {"n": 3, "length_penalty": -1.0},
        {"n": 4, "early_stopping": True},
        {"n": 4, "early_stopping": "never", "length_penalty": 1.5},
        {"n": 4, "early_stopping": "never", "length_penalty": -0.5},
        {"n": 3, "ignore_eos": True, "max_tokens": 40},
        {"n": 3, "min_tokens": 6},
        {"n": 8, "max_tokens": 1},
    ],
    ids=str,
)
def test_searches_find_what_transformers_finds(checkpoint: Checkpoint, params: dict[str, Any]) -> None:
    asked = SamplingParams(use_beam_search=True, **({"max_tokens": 20} | params))
    answers = found(build(checkpoint), asked)
    assert answers == expected(checkpoint.model, asked)
    if params == {"n": 4}:
        assert any(len(beam) < 20 for beams in answers for beam in beams), "no answer ends before its length"


@pytest.mark.parametrize("swap_space", [0.0, 0.01], ids=["recompute", "swap"])
@pytest.mark.parametrize("prefix_caching", [True, False], ids=["cache", "no cache"])
def test_searches_that_were_preempted_find_the_same(
    checkpoint: Checkpoint, swap_space: float, prefix_caching: bool
) -> None:
    asked = SamplingParams(use_beam_search=True, n=3, max_tokens=40, ignore_eos=True)
    core = build(
        checkpoint,
        num_gpu_blocks_override=40,
        swap_space=swap_space,
        enable_prefix_caching=prefix_caching,
        max_num_batched_tokens=48,
    )
    assert found(core, asked) == expected(checkpoint.model, asked)
    assert core.stats().num_preemptions > 0
    assert (core.stats().num_swaps > 0) == (swap_space > 0)
