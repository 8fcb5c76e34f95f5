"""What stages are planned to hold is what their ranks hold."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

import quire_engine.engine
import quire_engine.starting.memory
from quire_engine.config import EngineConfig
from quire_engine.distributed.layout import Layout
from quire_engine.distributed.place import Place
from quire_engine.distributed.ranks import TensorRanks, build_for
from quire_engine.engine import build_rank
from quire_engine.execution.device import Memory
from quire_engine.loading.checkpoint import Checkpoint
from quire_engine.lora.adapted_model import AdaptedModel
from quire_engine.memory_plan.model_facts import ModelFacts
from quire_engine.memory_plan.model_shape import ModelShape
from quire_engine.memory_plan.plan import GIB, MemoryPlan
from quire_engine.memory_plan.safetensors_header import TensorHeader
from quire_engine.memory_plan.stages import Stage, StageSizes
from quire_engine.models.decoder import CausalLM
from quire_engine.models.registry import decoder_spec
from quire_operator.plan.fit import CPU_RESIDENT_BYTES, Trial
from quire_operator.plan.gpu_memory import Device
from tests.engine.models.checkpoints import ALL, ENCODERS, make_model, save
from tests.operator.checkpoints import SMALL
from tests.operator.services import service

pytestmark = pytest.mark.usefixtures("one_thread")

LIMIT = 4 * GIB
"""Of each rank."""


class Alone(Place):
    """The place of a rank that does not ask the others."""

    def least(self, value: int) -> int:
        return value


@dataclass(frozen=True)
class Rank:
    """One of the ranks of a layout, which meets none."""

    rank: int
    layout: Layout

    def gather(self, model: str, device: torch.device) -> Place:
        return Alone(self.layout, self.rank, TensorRanks(self.rank % self.layout.tensor, self.layout.tensor))


def saved(case: str, folder: Path) -> Path:
    cls, config = (ALL | ENCODERS)[next(name for name in ALL | ENCODERS if name.startswith(case))]
    return save(make_model(cls, config()), folder)


def plans_of_ranks(directory: Path, tensor: int, monkeypatch: pytest.MonkeyPatch) -> list[MemoryPlan]:
    """Of the first rank of each of two stages, whose process is as large as the operator takes it to be."""
    for module in (quire_engine.engine, quire_engine.starting.memory):
        monkeypatch.setattr(module, "device_memory", lambda _: Memory(2 * tensor * LIMIT, CPU_RESIDENT_BYTES))
    config = EngineConfig(model=str(directory), device="cpu", tensor_parallel_size=tensor, pipeline_parallel_size=2)
    layout = Layout.of(config)
    return [build_rank(config, Rank(layout.ranks_of_stage(index)[0], layout)).plan for index in (0, 1)]


@pytest.mark.parametrize("tensor", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", [*ALL, *ENCODERS])
def test_each_stage_is_planned_as_its_rank_plans_itself(
    tmp_path: Path, case: str, tensor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = saved(case, tmp_path)
    facts, spec = ModelFacts.of_directory(directory), service(model={"source": "hf://org/name"}).spec
    assert facts.shape.num_layers > 1
    if not facts.shape.can_split(tensor):
        pytest.skip("its heads are not shared by two")
    trial = Trial(spec, facts, Device("CPU", LIMIT, on_gpu=False), tensor, facts.longest, 0.9, pipeline=2)
    planned, built = trial.stage_memory(), plans_of_ranks(directory, tensor, monkeypatch)
    assert [plan.activations for plan in planned] == [plan.activations for plan in built]
    if tensor == 1:
        assert [plan.weights for plan in planned] == [plan.weights for plan in built]
        assert [plan.num_tokens for plan in planned] == [plan.num_tokens for plan in built]
        assert [plan.kv_cache for plan in planned] == [plan.kv_cache for plan in built]
    for ours, theirs in zip(planned, built, strict=True):  # each GPU is planned with whole biases, which it shares
        assert theirs.weights <= ours.weights <= 1.02 * theirs.weights
        assert 0.99 * theirs.num_tokens <= ours.num_tokens <= theirs.num_tokens
    assert trial.memory().num_tokens == min(plan.num_tokens for plan in planned), "pages are the same in all"


@pytest.mark.parametrize("case", [*ALL, *ENCODERS])
def test_parts_are_the_whole_model(tmp_path: Path, case: str) -> None:
    """An embedding that is the head is in the first part and in the last."""
    facts = ModelFacts.of_directory(saved(case, tmp_path))
    assert facts.stages is not None
    all_of_it = facts.stages.weights(Stage(), range(facts.shape.num_layers))
    twice = all_of_it.elements - facts.weights.elements
    assert bool(twice) == facts.shape.tied_embeddings
    assert replace(all_of_it, split=all_of_it.split - twice) == facts.weights


@pytest.mark.parametrize("case", ["LlamaForCausalLM: grouped heads", "Phi3", "Qwen2MoeForCausalLM: dense"])
def test_adapters_of_a_stage_are_those_of_its_layers(tmp_path: Path, case: str) -> None:
    directory = saved(case, tmp_path)
    facts, spec = ModelFacts.of_directory(directory), decoder_spec(Checkpoint.open(str(directory)).config)
    assert facts.stages is not None
    for stage, size in itertools.product((Stage(0, 2), Stage(1, 2)), (1, 2)):
        with torch.device("meta"), build_for(TensorRanks(0, size), stage):
            model = CausalLM(spec)
        rank = AdaptedModel(model, spec.naming, torch.bfloat16, torch.device("cpu"))
        sizes = facts.stages.adapters(stage.layers(facts.shape.num_layers))
        assert sizes is not None
        assert sizes.num_bytes(facts.shape, size, 2, 32, 3, 100) == rank.num_bytes(32, 3, 100)


def headers(layers: list[int], **others: tuple[int, ...]) -> dict[str, TensorHeader]:
    """Of a model whose layers have one matrix of so many rows, and other tensors by name."""
    shapes = {f"model.layers.{number}.mlp.up_proj.weight": (rows, 10) for number, rows in enumerate(layers)}
    shapes |= {name.replace("__", "."): shape for name, shape in others.items()}
    return {name: TensorHeader("BF16", shape, 2 * math.prod(shape)) for name, shape in shapes.items()}


def shape_of(num_layers: int, *, tied: bool = False) -> ModelShape:
    return ModelShape.from_config(SMALL | {"num_hidden_layers": num_layers, "tie_word_embeddings": tied})


def test_layers_of_several_sizes_count_in_the_stage_that_has_them() -> None:
    tensors = headers([1, 1, 5, 1, 5], model__embed_tokens__weight=(100, 10), lm_head__weight=(7, 10))
    sizes = StageSizes.of(tensors, shape_of(5))
    assert sizes is not None
    assert (len(sizes.kinds), sizes.order) == (2, "aabab")
    held = [sizes.weights(stage, stage.layers(5)).elements for stage in (Stage(i, 3) for i in range(3))]
    assert held == [1000 + 20, 50 + 10, 50 + 70]


def test_an_embedding_that_is_the_head_is_in_the_first_stage_and_in_the_last() -> None:
    tensors = headers([1, 1, 1], model__embed_tokens__weight=(100, 10), model__norm__weight=(10,))
    sizes = StageSizes.of(tensors, shape_of(3, tied=True))
    assert sizes is not None
    held = [sizes.weights(stage, stage.layers(3)).elements for stage in (Stage(i, 3) for i in range(3))]
    assert held == [1000 + 10, 10, 1000 + 10 + 10]


@pytest.mark.parametrize("layers", [[1, 2, 3, 4, 5, 6, 7], [1] * 300])
def test_what_would_not_fit_into_a_message_is_not_known(layers: list[int]) -> None:
    assert StageSizes.of(headers(layers), shape_of(len(layers))) is None
    assert StageSizes.of(headers(layers[:6]), shape_of(6)) is not None


def test_a_checkpoint_without_one_of_its_layers_is_not_planned_over_stages() -> None:
    assert StageSizes.of(headers([1, 1]), shape_of(3)) is None


def test_the_largest_facts_fit_into_a_termination_message() -> None:
    tensors = headers([1 << 36, 1 << 37, 1 << 38, 1 << 39, 1 << 40, 1 << 41] * 42, lm_head__weight=(1 << 40, 10))
    facts = ModelFacts.of(SMALL | {"num_hidden_layers": 252}, tensors)
    assert facts.stages is not None
    assert ModelFacts.from_json(facts.to_json()) == facts
    assert len(facts.to_json().encode()) < 4096
