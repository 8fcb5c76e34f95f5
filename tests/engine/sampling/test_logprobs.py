"""Logprobs are those of the model's own distribution, as transformers computes it, however a request runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from quire_engine.config import EngineConfig
from quire_engine.core.messages import EngineRequest
from quire_engine.core.step import TokenLogprobs
from quire_engine.engine import build_engine
from quire_engine.memory_plan import plan
from quire_engine.sampling.logprobs import rank_hidden
from quire_engine.sampling_params import SamplingParams
from tests.engine.models.checkpoints import MAX_MODEL_LEN, VOCAB_SIZE, mixed_prompts

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = mixed_prompts(12, 60, seed=3)
ANSWER = 12


class Answer:
    """What came for one request."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.of_prompt: list[TokenLogprobs] = []


def answers(model_dir: Path, params: SamplingParams, **settings: Any) -> tuple[list[Answer], int]:
    """The answer to each prompt, and the number of preemptions."""
    options = {"block_size": 8, "max_model_len": MAX_MODEL_LEN, "num_gpu_blocks_override": 1024} | settings
    core, _ = build_engine(EngineConfig(model=str(model_dir), device="cpu", **options))
    made = {str(i): Answer() for i in range(len(PROMPTS))}
    for i, prompt in enumerate(PROMPTS):
        core.add_request(EngineRequest(str(i), prompt, params))
    while core.has_work():
        for output in core.step():
            answer = made[output.request_id]
            answer.token_ids += output.new_token_ids
            answer.logprobs += output.logprobs or []
            answer.of_prompt += output.prompt_logprobs or []
    return list(made.values()), core.stats().num_preemptions


def check(entries: list[TokenLogprobs], token_ids: list[int], expected: torch.Tensor, count: int) -> None:
    """`expected` [len(token_ids), vocab_size] are the log-probabilities at the tokens' places."""
    assert [e.token_id for e in entries] == token_ids
    for entry, row in zip(entries, expected, strict=True):
        assert entry.logprob == pytest.approx(row[entry.token_id].item(), abs=1e-4)
        assert entry.rank == 1 + int((row > row[entry.token_id]).sum())
        assert len(entry.top_ids) == len(entry.top_logprobs) == count
        assert entry.top_logprobs == pytest.approx(row.topk(count).values.tolist(), abs=1e-4)
        assert entry.top_logprobs == pytest.approx(row[entry.top_ids].tolist(), abs=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_num_batched_tokens": 17},
        {"num_gpu_blocks_override": 20, "max_num_batched_tokens": 24},
        {"num_gpu_blocks_override": 20, "enable_prefix_caching": False},
        {"num_gpu_blocks_override": 20, "swap_space": 0.01},
        {"max_num_seqs": 1},
    ],
    ids=str,
)
def test_they_equal_the_reference_of_prompt_and_answer_however_the_request_runs(
    model: PreTrainedModel, model_dir: Path, settings: dict[str, Any]
) -> None:
    params = SamplingParams(temperature=0.7, top_k=20, seed=4, max_tokens=ANSWER, logprobs=3, prompt_logprobs=2)
    made, num_preemptions = answers(model_dir, params, **settings)
    assert (num_preemptions > 0) == ("num_gpu_blocks_override" in settings)
    for prompt, answer in zip(PROMPTS, made, strict=True):
        assert len(answer.token_ids) == ANSWER
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer.token_ids])).logits[0]
        expected = logits.log_softmax(-1)
        check(answer.of_prompt, prompt[1:], expected[: len(prompt) - 1], 2)
        check(answer.logprobs, answer.token_ids, expected[len(prompt) - 1 : -1], 3)


def test_none_come_where_none_are_asked_for_and_the_tokens_are_the_same(model_dir: Path) -> None:
    without, _ = answers(model_dir, SamplingParams(seed=4, max_tokens=ANSWER))
    with_them, _ = answers(model_dir, SamplingParams(seed=4, max_tokens=ANSWER, logprobs=0, prompt_logprobs=0))
    assert [a.token_ids for a in without] == [a.token_ids for a in with_them]
    assert not any(a.logprobs or a.of_prompt for a in without)
    assert all(e.top_ids == [] for a in with_them for e in a.logprobs + a.of_prompt)


def test_a_long_prompt_is_looked_at_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "LOGPROB_BYTES", 4 * VOCAB_SIZE * 10)
    hidden = torch.randn(33, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
    rows = []

    def logits_of(part: torch.Tensor) -> torch.Tensor:
        rows.append(len(part))
        return part

    token_ids = torch.arange(33)
    entries = rank_hidden(hidden, token_ids, 1, logits_of, VOCAB_SIZE)
    assert rows == [10, 10, 10, 3]
    check(entries, token_ids.tolist(), hidden.log_softmax(-1), 1)
