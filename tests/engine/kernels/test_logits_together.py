"""Logits that come with the layers, and the greatest of each row, are those of the head by itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from quire_engine import SamplingParams
from quire_engine.attention.context import AttentionContext, PrefillSpan, attention_context
from quire_engine.config import EngineConfig
from quire_engine.core.messages import EngineRequest
from quire_engine.core.step import NO_TOKEN
from quire_engine.engine import build_engine
from quire_engine.execution.model_runner import ModelRunner
from quire_engine.kernels import cpu
from quire_engine.layers.embedding import Embedding
from quire_engine.models import layers_together
from quire_engine.models.decoder import CausalLM
from quire_engine.sampling.greatest import greatest
from tests.engine.kernels.test_layers_together import SHORT, answers_by_ways, checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

FLAGS: dict[str, Any] = {"device": "cpu", "dtype": "bfloat16", "num_gpu_blocks_override": 8, "block_size": 8}


@pytest.fixture
def model(library: cpu.Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CausalLM:
    monkeypatch.setattr(cpu, "multiplies", True)
    monkeypatch.setattr(cpu, "library", library)
    core, _ = build_engine(EngineConfig(model=str(checkpoint("llama", tmp_path)), max_model_len=32, **FLAGS))
    runner = core._executor
    assert isinstance(runner, ModelRunner)
    assert isinstance(runner._model, CausalLM)
    return runner._model


def decodes() -> AttentionContext:
    return AttentionContext(torch.tensor([8, 16]), 2, [1, 1], torch.tensor([[1], [2]]), [])


def prompts() -> AttentionContext:
    spans = [PrefillSpan(0, 5, 0, torch.tensor([1])), PrefillSpan(5, 3, 0, torch.tensor([2]))]
    slots = torch.tensor([8, 9, 10, 11, 12, 16, 17, 18])
    return AttentionContext(slots, 0, [], torch.empty(0, 0, dtype=torch.int64), spans, wanted=torch.tensor([7, 4]))


def run(model: CausalLM, context: AttentionContext) -> torch.Tensor:
    """Hidden states of the rows that are wanted."""
    starts = [span.count for span in context.prefills] or [1] * context.num_decodes
    positions = torch.cat([torch.arange(count) for count in starts])
    with torch.inference_mode(), attention_context(context):
        hidden: torch.Tensor = model(torch.arange(5, 5 + len(positions)), positions)
    return hidden if context.wanted is None else hidden[context.wanted]


@pytest.mark.parametrize("batch", [decodes, prompts])
@pytest.mark.parametrize("biased", [False, True])
def test_they_are_the_heads(model: CausalLM, batch: Any, biased: bool) -> None:
    assert model.lm_head is not None
    if biased:
        torch.manual_seed(1)
        model.lm_head.bias = torch.nn.Parameter(torch.randn(len(model.lm_head.weight)).bfloat16(), requires_grad=False)
        model.model.together_by = None  # it was built with the head as it was
    context = batch()
    context.asks_logits = True
    hidden = run(model, context)
    assert context.logits is not None
    with torch.inference_mode():
        wanted = model.logits(hidden)
    assert torch.equal(context.logits.all, wanted)
    assert torch.equal(context.logits.greatest, greatest(wanted))


@pytest.mark.parametrize("batch", [decodes, prompts])
def test_nobody_asks_for_them_and_none_are_made(model: CausalLM, batch: Any) -> None:
    context = batch()
    run(model, context)
    assert context.logits is None


def test_a_row_of_no_numbers_has_no_greatest(model: CausalLM) -> None:
    assert model.model.embed_tokens is not None
    model.model.embed_tokens.weight[5] = float("nan")  # the first one's token
    context = decodes()
    context.asks_logits = True
    run(model, context)
    assert context.logits is not None
    first, second = context.logits.greatest.tolist()
    assert first == NO_TOKEN
    assert second == greatest(context.logits.all)[1]


def test_logits_that_are_scaled_or_bent_are_left_to_the_model(model: CausalLM) -> None:
    assert model.model.heads == (model.lm_head,)
    with torch.device("meta"):
        for spec in (replace(model.spec, logit_multiplier=2.0), replace(model.spec, logit_softcap=30.0)):
            assert CausalLM(spec).model.heads == ()


def test_more_rows_than_are_kept_are_left_to_the_head(
    library: cpu.Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, ways = checkpoint("llama", tmp_path), ((0, 1), (128, 1))
    monkeypatch.setattr(layers_together, "_MOST_LOGITS", 3)  # of seven requests
    apart, together = answers_by_ways(library, monkeypatch, path, SHORT, ways, {})
    assert together == apart


def test_greedy_answers_need_no_head_beside_the_layers(
    library: cpu.Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint("llama", tmp_path)
    (with_logprobs,) = answers_by_ways(library, monkeypatch, path, SHORT, ((0, 1),), {})
    monkeypatch.setattr(cpu, "library", library)
    core, _ = build_engine(EngineConfig(model=str(path), max_model_len=64, **FLAGS | {"num_gpu_blocks_override": 80}))
    monkeypatch.setattr(Embedding, "logits", lambda *_: pytest.fail("the head ran by itself"))
    for name, prompt in SHORT.items():
        core.add_request(EngineRequest(name, prompt, SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)))
    found: dict[str, list[int]] = {name: [] for name in SHORT}
    while core.has_work():
        for output in core.step():
            found[output.request_id] += output.new_token_ids
    assert found == {name: [token for token, _ in answer] for name, answer in with_logprobs.items()}
