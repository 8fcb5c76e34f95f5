"""With steps that are under way before the tokens before them are known, every answer is that of the plain loop."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from quire_engine import engine
from quire_engine.config import EngineConfig
from quire_engine.core.loop import EngineCore
from quire_engine.core.messages import EngineRequest
from quire_engine.core.step import LATEST, Step
from quire_engine.execution.model_runner import ModelRunner
from quire_engine.sampling_params import SamplingParams
from tests.engine.models.checkpoints import FAMILIES, MAX_MODEL_LEN, VOCAB_SIZE, make_model, mixed_prompts, save

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cls, config = FAMILIES["llama"]
    return save(make_model(cls, config()), tmp_path_factory.mktemp("llama"))


def build(directory: Path, *, ahead: bool, **changes: Any) -> EngineCore:
    settings: dict[str, Any] = {"block_size": 8, "max_model_len": MAX_MODEL_LEN, "num_gpu_blocks_override": 64}
    config = EngineConfig(
        model=str(directory),
        device="cpu",
        dtype="float32",
        max_num_seqs=8,
        async_scheduling=ahead,
        **settings | changes,
    )
    return engine.build_engine(config)[0]


def mixed_requests(seed: int, count: int = 30) -> list[EngineRequest]:
    """Drawn with seeds and without, greedy, cut short by a token; and now and then what needs its own tokens."""
    rng = random.Random(seed)
    made = []
    for i, prompt in enumerate(mixed_prompts(count, 24, seed)):
        params: dict[str, Any] = {"max_tokens": rng.randint(1, 16), "seed": rng.randrange(100)}
        params |= rng.choice(
            [
                {"temperature": 0.0},
                {"temperature": 0.7},
                {"top_k": 8, "top_p": 0.8},
                {"min_p": 0.05, "seed": None},
                {"temperature": 3.0, "stop_token_ids": [*range(0, VOCAB_SIZE, 3)], "min_tokens": 1},
                {"logit_bias": {5: 3.0, 6: -3.0}, "temperature": 0.0},
            ]
        )
        if rng.random() < 0.15:
            params |= rng.choice(
                [
                    {"frequency_penalty": 0.5, "repetition_penalty": 1.2},
                    {"logprobs": 2},
                    {"bad_words_token_ids": [[3, 4], [7]]},
                    {"prompt_logprobs": 1},
                ]
            )
        made.append(EngineRequest(str(i), prompt, SamplingParams(**params), priority=rng.randrange(2)))
    return made


def streams(
    core: EngineCore, requests: list[EngineRequest], seed: int
) -> dict[str, list[tuple[list[int], str | None]]]:
    """What each request heard, turn by turn. Some are aborted after a few tokens, as at a stop string."""
    rng = random.Random(seed)
    leaves = {r.request_id: rng.randint(1, 6) for r in requests if rng.random() < 0.2}
    waiting, heard = requests[::-1], dict[str, list[tuple[list[int], str | None]]]()
    while waiting or core.has_work():
        for _ in range(rng.randrange(3)):
            if waiting:
                core.add_request(waiting.pop())
        for output in core.step() if core.has_work() else []:
            name = output.request_id
            heard.setdefault(name, []).append((output.new_token_ids, output.finish_reason))
            if len(heard[name]) == leaves.get(name) and output.finish_reason is None:
                core.abort([name])
        core.check_integrity()
    assert core.stats().kv_cache_usage == 0.0
    return heard


@pytest.mark.parametrize(
    ("seed", "changes"),
    [
        (0, {}),
        (1, {"num_gpu_blocks_override": 14, "max_model_len": 64}),
        (2, {"num_gpu_blocks_override": 14, "max_model_len": 64, "swap_space": 0.01}),
        (3, {"max_num_batched_tokens": 16, "scheduling_policy": "priority"}),
        (4, {"enable_prefix_caching": False, "enable_chunked_prefill": False}),
    ],
    ids=str,
)
def test_answers_are_those_of_the_plain_loop(seed: int, changes: dict[str, Any], directory: Path) -> None:
    requests = mixed_requests(seed)
    plain, ahead = (build(directory, ahead=way, **changes) for way in (False, True))
    assert streams(ahead, requests, seed) == streams(plain, requests, seed)
    if changes.get("num_gpu_blocks_override") == 14:
        assert ahead.stats().num_preemptions > 0


def test_a_step_of_decodes_is_handed_over_without_its_tokens(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    core, steps = build(directory, ahead=True), list[Step]()
    submit = ModelRunner.submit

    def noted(self: ModelRunner, step: Step) -> None:
        steps.append(step)
        submit(self, step)

    monkeypatch.setattr(ModelRunner, "submit", noted)
    for name in "ab":
        core.add_request(EngineRequest(name, [1, 2, 3], SamplingParams(temperature=0.0, max_tokens=4)))
    while core.has_work():
        core.step()
    assert [[s.token_ids for s in step.scheduled] for step in steps[1:]] == [[[LATEST]] * 2] * 3


@pytest.mark.parametrize(("settings", "overlaps"), [({}, False), ({"async_scheduling": True}, True)])
def test_steps_overlap_where_it_is_asked_for_and_on_gpus(settings: dict[str, Any], overlaps: bool) -> None:
    config = EngineConfig(model="x", **settings)
    assert (config.overlaps("cpu"), config.overlaps("cuda")) == (overlaps, True)
    assert not EngineConfig(model="x", async_scheduling=False).overlaps("cuda")
    assert not EngineConfig(model="x", tensor_parallel_size=2).overlaps("cuda")
