"""A model that gives NaN or infinity: the request ends with an error, others have their answers, the engine lives."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from quire_engine.config import EngineConfig
from quire_engine.core.loop import EngineCore
from quire_engine.core.messages import EngineOutput, EngineRequest
from quire_engine.core.pooling import PoolingParams
from quire_engine.engine import build_engine
from quire_engine.sampling_params import SamplingParams
from tests.engine.models.checkpoints import FAMILIES, make_model, save

pytestmark = pytest.mark.usefixtures("one_thread")

BAD = 0  # the token whose embedding is infinite: also what the warm-up runs
GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True, logit_bias={BAD: -100.0})

Build = Callable[..., EngineCore]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    def build(family: str, row: int | None, name: str = "embed_tokens.weight", **flags: object) -> EngineCore:
        """An engine whose weights `name` are infinite at `row`, or NaN in one place of each row."""
        model = make_model(FAMILIES[family][0], FAMILIES[family][1]())
        with torch.no_grad():
            weight = dict(model.named_parameters())[f"model.{name}"]
            if row is None:
                weight[..., 3] = math.nan
            else:
                weight[row] = math.inf
        flags = {"device": "cpu", "block_size": 8, "max_model_len": 96, "num_gpu_blocks_override": 40} | flags
        return build_engine(EngineConfig(model=str(save(model, tmp_path)), **flags))[0]  # type: ignore[arg-type]  # mixed values

    return build


def run(core: EngineCore, prompts: list[list[int]], params: SamplingParams = GREEDY) -> list[EngineOutput]:
    """What came for each prompt, as one output."""
    whole = [EngineOutput(str(i), []) for i in range(len(prompts))]
    for output, prompt in zip(whole, prompts, strict=True):
        core.add_request(EngineRequest(output.request_id, prompt, params))
    while core.has_work():
        for output in core.step():
            joined = whole[int(output.request_id)]
            joined.new_token_ids += output.new_token_ids
            joined.finish_reason, joined.error, joined.error_kind = (
                output.finish_reason,
                output.error,
                output.error_kind,
            )
        core.check_integrity()
    return whole


def test_weights_that_hold_nan_fail_each_request_by_itself_and_name_what_to_look_at(build: Build) -> None:
    core = build("llama", None, "layers.1.mlp.up_proj.weight")
    for _ in range(2):
        for output in run(core, [[5] * 9, [7]]):
            assert (output.finish_reason, output.error_kind, output.new_token_ids) == ("error", "fault", [])
            assert output.error is not None
            assert "no finite logits for this request" in output.error
            assert "--dtype" in output.error
            assert "checkpoint" in output.error
    assert core.stats().kv_cache_usage == 0.0


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("budget", [256, 16], ids=["whole prompts", "chunks"])
def test_a_request_with_a_bad_token_harms_nobody_in_its_batch_or_after_it(
    build: Build, family: str, budget: int
) -> None:
    prompts = [[11 + i, *range(20, 20 + 5 * i)] for i in range(6)]
    bad = [[40, BAD], [41, *range(60, 90), BAD, 3, 4], [*prompts[5], BAD]]
    together = [x for pair in zip(prompts, (bad * 2), strict=True) for x in pair]
    core = build(family, BAD, max_num_batched_tokens=budget, num_gpu_blocks_override=14)
    expected = [run(build(family, BAD), [prompt])[0].new_token_ids for prompt in prompts]
    for _ in range(3):  # the pool is small: later rounds have the pages that bad requests wrote
        outputs = run(core, together)
        assert [o.new_token_ids for o in outputs[::2]] == expected
        assert [(o.finish_reason, o.error_kind) for o in outputs[1::2]] == [("error", "fault")] * 6


def test_one_that_leaves_before_it_is_found_out_leaves_nothing_behind(build: Build) -> None:
    core = build("llama", BAD, max_num_batched_tokens=16, num_gpu_blocks_override=12)
    (expected,) = run(core, [[11, 12, 13]])
    core.add_request(EngineRequest("bad", [40, BAD] * 40, GREEDY))
    core.step()
    core.abort(["bad"])
    assert [o.new_token_ids for o in run(core, [[11, 12, 13]] * 6)] == [expected.new_token_ids] * 6


def test_searches_logprobs_of_prompts_and_sampling_fail_alike(build: Build) -> None:
    core = build("llama", BAD)
    for params in (
        SamplingParams(n=3, use_beam_search=True, max_tokens=4),
        SamplingParams(prompt_logprobs=2, max_tokens=4),
        SamplingParams(temperature=1.0, top_p=0.9, top_k=7, logprobs=2, max_tokens=4),
    ):
        (output,) = run(core, [[40, BAD, 41, 42]], params)
        assert (output.finish_reason, output.error_kind) == ("error", "fault")
    assert run(core, [[40, 41]])[0].finish_reason == "length"


def test_vectors_that_are_not_finite_are_not_given_out(build: Build) -> None:
    core = build("llama", BAD, task="embed")
    for name, prompt in (("bad", [40, BAD, 41]), ("good", [40, 41])):
        core.add_request(EngineRequest(name, prompt, SamplingParams(), pooling=PoolingParams()))
    outputs = {o.request_id: o for o in core.step()}
    assert outputs["bad"].error_kind == "fault"
    assert "no finite embedding" in (outputs["bad"].error or "")
    assert outputs["good"].embedding is not None
