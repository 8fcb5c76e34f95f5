"""Whatever requests ask for, together or alone, on little memory or much: each gets the same answer, and none ends the
engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quire_engine.config import EngineConfig
from quire_engine.core.loop import EngineCore
from quire_engine.core.messages import EngineOutput, EngineRequest
from quire_engine.engine import build_engine
from quire_engine.sampling_params import SamplingParams
from tests.engine.models.checkpoints import FAMILIES, VOCAB_SIZE, make_model, save

pytestmark = pytest.mark.usefixtures("one_thread")

token = st.integers(0, VOCAB_SIZE - 1)
common = st.integers(0, 7)  # tokens that often come together
tokens = st.lists(token | common, min_size=1, max_size=4)
params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.01, 0.7, 1.0, 5.0, 100.0]) | st.floats(0, 3),
    top_p=st.just(1.0) | st.floats(1e-9, 1.0),
    top_k=st.integers(-1, 5) | st.sampled_from([VOCAB_SIZE, 10**9]),
    min_p=st.just(0.0) | st.floats(0, 1),
    seed=st.integers(-(2**63), 2**63 - 1),
    stop_token_ids=st.lists(token, max_size=3),
    ignore_eos=st.booleans(),
    max_tokens=st.integers(5, 14),
    min_tokens=st.integers(0, 5),
    logprobs=st.none() | st.sampled_from([0, 1, 5, 256]),
    prompt_logprobs=st.none() | st.sampled_from([0, 3]),
    presence_penalty=st.just(0.0) | st.floats(-2, 2),
    frequency_penalty=st.just(0.0) | st.floats(-2, 2),
    repetition_penalty=st.just(1.0) | st.floats(0.01, 100),
    logit_bias=st.none() | st.dictionaries(token, st.floats(-100, 100), max_size=6),
    allowed_token_ids=st.none() | st.lists(token, min_size=1, max_size=20),
    bad_words_token_ids=st.lists(tokens | st.lists(st.integers(0, 10**6), max_size=2), max_size=6),
)
prompts = st.lists(common | token, min_size=1, max_size=40)


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Callable[..., EngineCore]:
    cls, config = FAMILIES["llama"]
    model = make_model(cls, config())
    model.config.eos_token_id = model.generation_config.eos_token_id = [3, 90]
    directory: Path = save(model, tmp_path_factory.mktemp("random-params"))

    def build(num_blocks: int, budget: int, caching: bool) -> EngineCore:
        return build_engine(
            EngineConfig(
                model=str(directory),
                device="cpu",
                block_size=8,
                max_model_len=64,
                num_gpu_blocks_override=num_blocks,
                max_num_batched_tokens=budget,
                enable_prefix_caching=caching,
            )
        )[0]

    return build


@pytest.fixture(scope="module")
def crowded(build: Callable[..., EngineCore]) -> EngineCore:
    return build(12, 24, True)


@pytest.fixture(scope="module")
def roomy(build: Callable[..., EngineCore]) -> EngineCore:
    return build(100, 512, False)


def run(core: EngineCore, requests: list[EngineRequest]) -> dict[str, EngineOutput]:
    """All that came for each request, as one output."""
    whole = {r.request_id: EngineOutput(r.request_id, []) for r in requests}
    for request in requests:
        core.add_request(replace(request, params=replace(request.params)))
    while core.has_work():
        for output in core.step():
            joined = whole[output.request_id]
            joined.new_token_ids += output.new_token_ids
            joined.finish_reason, joined.stop_reason = output.finish_reason, output.stop_reason
            joined.error = output.error
            for name in ("logprobs", "prompt_logprobs"):
                if getattr(output, name) is not None:
                    setattr(joined, name, (getattr(joined, name) or []) + getattr(output, name))
        core.check_integrity()
    return whole


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,  # logits of another batch differ in their last bits: a seed that minds would come some day
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(asked=st.lists(st.tuples(prompts, params), min_size=1, max_size=8))
def test_an_answer_does_not_depend_on_the_others(
    crowded: EngineCore, roomy: EngineCore, asked: list[tuple[list[int], SamplingParams]]
) -> None:
    requests = [EngineRequest(str(i), prompt, own) for i, (prompt, own) in enumerate(asked)]
    together = run(crowded, requests)
    assert crowded.stats().kv_cache_usage == 0.0
    for request in requests:
        mine = together[request.request_id]
        own = request.params
        assert mine.finish_reason in ("stop", "length"), mine.error
        assert len(mine.new_token_ids) <= (own.max_tokens or 0)
        if own.allowed_token_ids is not None:
            assert set(mine.new_token_ids) <= set(own.allowed_token_ids)
        alone = run(roomy, [request])[request.request_id]
        assert mine.new_token_ids == alone.new_token_ids
        assert (mine.finish_reason, mine.stop_reason) == (alone.finish_reason, alone.stop_reason)
        assert (mine.logprobs is None) == (own.logprobs is None)
        if mine.logprobs is not None:
            assert [e.token_id for e in mine.logprobs] == mine.new_token_ids
            values = [e.logprob for e in mine.logprobs]
            assert values == pytest.approx([e.logprob for e in alone.logprobs or []], abs=1e-3)
        if own.prompt_logprobs is not None:
            assert [e.token_id for e in mine.prompt_logprobs or []] == request.prompt_token_ids[1:]


def test_the_crowded_engine_did_preempt(crowded: EngineCore) -> None:
    """Of the test above, which would show less otherwise."""
    requests = [EngineRequest(str(i), [1] * 30, SamplingParams(max_tokens=20, ignore_eos=True)) for i in range(8)]
    run(crowded, requests)
    assert crowded.stats().num_preemptions > 0
