"""Through the whole engine, the tokens of many requests come as often as the model says, however they are seeded."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from quire_engine.config import EngineConfig
from quire_engine.core.messages import EngineRequest
from quire_engine.engine import build_engine
from quire_engine.sampling_params import SamplingParams
from tests.engine.models.checkpoints import MAX_MODEL_LEN, VOCAB_SIZE

pytestmark = pytest.mark.usefixtures("one_thread")

REQUESTS = 3000
PROMPT = [5, 9, 9, 77, 3, 12, 40, 9, 101]


def first_tokens(model_dir: Path, params: list[SamplingParams]) -> torch.Tensor:
    """How often each token comes first, [vocab_size]."""
    config = EngineConfig(model=str(model_dir), device="cpu", max_model_len=MAX_MODEL_LEN, num_gpu_blocks_override=600)
    core, _ = build_engine(config)
    for i, own in enumerate(params):
        core.add_request(EngineRequest(str(i), PROMPT, own))
    tokens = []
    while core.has_work():
        tokens += [token for output in core.step() for token in output.new_token_ids]
    assert len(tokens) == REQUESTS
    return torch.bincount(torch.tensor(tokens), minlength=VOCAB_SIZE).double()


@pytest.mark.parametrize("seeded", ["by their number", "as n answers to one", "by the engine"])
@pytest.mark.parametrize("shaped", [False, True])
def test_they_follow_the_models_distribution(
    model: PreTrainedModel, model_dir: Path, seeded: str, shaped: bool
) -> None:
    base = SamplingParams(max_tokens=1, temperature=1.5)
    if shaped:
        base = SamplingParams(
            max_tokens=1,
            temperature=1.2,
            top_p=0.9,
            repetition_penalty=1.5,
            logit_bias={9: 4.0},
            bad_words_token_ids=[[3]],
        )
    with torch.no_grad():
        logits = model(torch.tensor([PROMPT])).logits[0, -1].double()
    if shaped:
        logits[9] += 4.0
        for token in set(PROMPT):
            logits[token] = logits[token] / 1.5 if logits[token] > 0 else logits[token] * 1.5
        logits[3] = -math.inf
    expected = torch.softmax(logits / base.temperature, -1)
    if shaped:
        ordered, order = expected.sort(descending=True)
        expected[order[(ordered.cumsum(0) - ordered) >= 0.9]] = 0.0
        expected /= expected.sum()
    if seeded == "by the engine":
        params = [base] * REQUESTS
    elif seeded == "by their number":
        params = [SamplingParams(**base.__dict__ | {"seed": i}) for i in range(REQUESTS)]
    else:
        params = [SamplingParams(**base.__dict__ | {"n": 128, "seed": 10**6}).child(i) for i in range(REQUESTS)]

    counts = first_tokens(model_dir, params)
    assert counts[expected == 0].sum() == 0, "a token came that is excluded"
    likely = expected * REQUESTS >= 5
    observed = torch.cat([counts[likely], counts[~likely].sum()[None]])
    wanted = torch.cat([expected[likely], expected[~likely].sum()[None]]) * REQUESTS
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    chi_squared = float(((observed - wanted) ** 2 / wanted).sum())
    freedom = len(wanted) - 1
    # Five standard deviations of a chi-squared variable: the draws are fixed by the seeds, so this cannot flicker.
    assert chi_squared <= freedom + 5 * math.sqrt(2 * freedom)
    assert freedom > 5
