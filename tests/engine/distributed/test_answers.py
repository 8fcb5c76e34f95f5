"""Ranks together answer as one process does: greedy in float32, token for token as transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from quire_engine.config import EngineConfig
from quire_engine.core.loop import EngineCore
from quire_engine.core.messages import EngineRequest
from quire_engine.core.step import Step
from quire_engine.distributed.watch import RanksLostError
from quire_engine.engine import build_engine
from quire_engine.execution.ranked_executor import RankedExecutor
from quire_engine.sampling_params import SamplingParams
from quire_engine.startup_error import StartupError
from tests.engine.distributed.rank_pool import RankPool
from tests.engine.models.checkpoints import (
    ALL,
    FAMILIES,
    MAX_MODEL_LEN,
    check_greedy,
    greedy_reference,
    make_model,
    mixed_prompts,
    save,
)

pytestmark = pytest.mark.usefixtures("one_thread")

LAYOUTS = {"TP 2": (2, 1), "TP 4": (4, 1), "PP 2": (1, 2), "TP 2 x PP 2": (2, 2)}
SHAPES = {
    shape: next(case for case in ALL if case.startswith(shape))
    for shape in ("Mixtral", "Deepseek", "Gemma2", "GPTNeoX")
}
# Norms over heads, ALiBi, norms and embeddings elsewhere, fused and turned weights, ropes that depend on the length.
_OTHERS = ("Olmo2", "StableLm", "Cohere", "Falcon", "OPT", "Bloom", "Mpt", "GPT2", "Phi3", "LlamaForCausalLM: dynamic")
MORE_SHAPES = [case for case in ALL if case.startswith(_OTHERS)]
PROMPTS, NEW_TOKENS = mixed_prompts(12, 60), 12


@contextmanager
def engine(directory: Path, tensor: int, pipeline: int, **changes: Any) -> Iterator[EngineCore]:
    settings: dict[str, Any] = {"block_size": 8, "max_model_len": MAX_MODEL_LEN, "num_gpu_blocks_override": 40}
    settings |= {"max_num_batched_tokens": 48, "dtype": "float32", "device": "cpu"} | changes
    config = EngineConfig(
        model=str(directory), tensor_parallel_size=tensor, pipeline_parallel_size=pipeline, **settings
    )
    core, _ = build_engine(config)
    try:
        yield core
    finally:
        core.close()


def answer(core: EngineCore, prompts: list[list[int]], **params: Any) -> list[list[int]]:
    answers: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        answers[str(i)] = []
        core.add_request(
            EngineRequest(str(i), prompt, SamplingParams(**{"temperature": 0.0, "max_tokens": NEW_TOKENS} | params))
        )
    while core.has_work():
        for output in core.step():
            assert output.error is None
            answers[output.request_id] += output.new_token_ids
        core.check_integrity()
    return [answers[str(i)] for i in range(len(prompts))]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[int]]]:
    transformers.utils.logging.disable_progress_bar()
    model = make_model(FAMILIES["llama"][0], FAMILIES["llama"][1]())
    return save(model, tmp_path_factory.mktemp("llama")), greedy_reference(model, PROMPTS, NEW_TOKENS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranks_answer_as_transformers_does(ranks: RankPool, llama: tuple[Path, list[list[int]]], layout: str) -> None:
    directory, expected = llama
    with engine(directory, *LAYOUTS[layout]) as core:
        assert answer(core, PROMPTS) == expected


@pytest.mark.parametrize("case", SHAPES.values())
def test_stages_of_two_ranks_answer_alike_for_other_shapes(ranks: RankPool, case: str, tmp_path: Path) -> None:
    cls, config = ALL[case]
    model = make_model(cls, config(), seed=3)
    with engine(save(model, tmp_path), 2, 2) as core:
        check_greedy(model, PROMPTS, answer(core, PROMPTS))


@pytest.mark.slow
@pytest.mark.parametrize("case", MORE_SHAPES)
def test_stages_of_two_ranks_answer_alike_however_a_family_is_built(ranks: RankPool, case: str, tmp_path: Path) -> None:
    cls, config = ALL[case]
    model = make_model(cls, config(), seed=3)
    with engine(save(model, tmp_path), 2, 2) as core:
        answers = answer(core, PROMPTS)
    assert check_greedy(model, PROMPTS, answers) == 0


@pytest.mark.parametrize("case", [SHAPES["Mixtral"], SHAPES["Deepseek"]])
def test_ranks_that_hold_whole_experts_answer_alike(ranks: RankPool, case: str, tmp_path: Path) -> None:
    cls, config = ALL[case]
    model = make_model(cls, config(), seed=4)
    with engine(save(model, tmp_path), 2, 1, enable_expert_parallel=True) as core:
        check_greedy(model, PROMPTS, answer(core, PROMPTS))


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", ALL)
def test_ranks_answer_alike_for_every_family(ranks: RankPool, case: str, layout: str, tmp_path: Path) -> None:
    cls, config = ALL[case]
    model = make_model(cls, config(), seed=2)
    try:
        with engine(save(model, tmp_path), *LAYOUTS[layout]) as core:
            check_greedy(model, PROMPTS, answer(core, PROMPTS))
    except StartupError as error:
        if "-parallel-size" not in str(error):
            raise
        pytest.skip(str(error))  # a shape that so many ranks cannot share, refused as a user would be told


def test_sampled_answers_and_logprobs_are_those_of_one_process(
    ranks: RankPool, llama: tuple[Path, list[list[int]]]
) -> None:
    params = {"temperature": 0.9, "top_p": 0.95, "seed": 5, "logprobs": 2, "prompt_logprobs": 1}
    found = []
    for tensor, pipeline in ((1, 1), (2, 2)):
        with engine(llama[0], tensor, pipeline) as core:
            found.append(answer(core, PROMPTS[:6], **params))
    assert found[0] == found[1]


def test_the_pool_is_what_the_rank_with_the_least_room_holds(ranks: RankPool, tmp_path: Path) -> None:
    cls, config = FAMILIES["llama"]
    three_layers = config()
    three_layers.num_hidden_layers = 3
    directory = save(make_model(cls, three_layers), tmp_path)
    layer_page = 2 * 8 * 2 * 16 * 4  # keys and values, tokens, KV heads, head size, bytes
    # Rank 1 has two of the layers and rank 0 one: the budget that is 40 pages here is 20 there.
    with engine(directory, 1, 2, num_gpu_blocks_override=None, kv_cache_memory_bytes=40 * layer_page) as core:
        assert core.config.num_blocks == 20


def test_stages_work_on_steps_of_different_requests_at_once(
    ranks: RankPool, llama: tuple[Path, list[list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = RankedExecutor.submit
    most_in_flight: list[int] = []

    def counted(executor: RankedExecutor, step: Step) -> None:
        submit(executor, step)
        most_in_flight[-1] = max(most_in_flight[-1], len(executor._in_flight))

    monkeypatch.setattr(RankedExecutor, "submit", counted)
    for tensor, pipeline in ((1, 2), (2, 1)):
        most_in_flight.append(0)
        with engine(llama[0], tensor, pipeline) as core:
            assert answer(core, PROMPTS) == llama[1]
    assert most_in_flight == [2, 1]


def test_a_rank_that_is_killed_is_named_by_the_next_step_and_a_new_engine_can_be_built(
    ranks: RankPool, llama: tuple[Path, list[list[int]]]
) -> None:
    with engine(llama[0], 2, 1) as core:
        answer(core, PROMPTS[:1])
        ranks.launched[-1].kill()
        with pytest.raises(RanksLostError, match="rank 1 ended by signal 9"):
            answer(core, PROMPTS[:1])
    with engine(llama[0], 2, 1) as core:
        assert answer(core, PROMPTS) == llama[1]


@pytest.mark.parametrize(
    ("layout", "says"),
    [
        ((3, 1), "--tensor-parallel-size is 3: it does not go with 4 heads"),
        ((8, 1), "--tensor-parallel-size is 8: it must divide the 4 heads"),
        ((1, 5), "--pipeline-parallel-size is 5: the model has 2 layers"),
    ],
)
def test_a_size_that_does_not_divide_the_model_is_refused_before_a_rank_is_started(
    llama: tuple[Path, list[list[int]]], layout: tuple[int, int], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("quire_engine.distributed.leader.launch")
    with pytest.raises(StartupError, match=says), engine(llama[0], *layout):
        pass


def test_a_rank_that_cannot_load_ends_the_start_with_its_cause(
    ranks: RankPool, llama: tuple[Path, list[list[int]]], tmp_path: Path
) -> None:
    """The last stage finds nothing wrong: a tensor of the first is short of a row."""
    from safetensors.torch import load_file, save_file

    (tmp_path / "config.json").write_bytes((llama[0] / "config.json").read_bytes())
    tensors = load_file(llama[0] / "model.safetensors")
    tensors["model.layers.0.mlp.down_proj.weight"] = torch.zeros(63, 96)
    save_file(tensors, tmp_path / "model.safetensors")
    with (
        pytest.raises(StartupError, match=r"InvalidCheckpoint: .*layers\.0\.mlp\.down_proj.*\[63, 96\]"),
        engine(tmp_path, 1, 2),
    ):
        pass
