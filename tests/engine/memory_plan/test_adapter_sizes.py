"""What adapters take, from a checkpoint's headers: as much as the engine sets aside for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import quire_engine.engine
import quire_engine.starting.memory
from quire_engine.config import EngineConfig
from quire_engine.distributed.ranks import TensorRanks, build_for
from quire_engine.engine import build_rank
from quire_engine.execution.device import Memory
from quire_engine.loading.checkpoint import Checkpoint
from quire_engine.lora.adapted_model import AdaptedModel
from quire_engine.lora.reader import AdapterReader
from quire_engine.memory_plan.model_facts import ModelFacts
from quire_engine.memory_plan.plan import GIB
from quire_engine.models.decoder import CausalLM
from quire_engine.models.registry import decoder_spec
from quire_operator.plan.fit import CPU_RESIDENT_BYTES
from quire_operator.plan.gpu_memory import Device
from quire_operator.plan.service_plan import plan_of
from tests.engine.models.checkpoints import ALL, make_model, save
from tests.operator.services import service

pytestmark = pytest.mark.usefixtures("one_thread")

LIMIT = 5 * GIB
RANK, COUNT, TOKENS = 32, 3, 100
CASES = (
    *("LlamaForCausalLM: grouped heads", "Phi3", "Qwen3ForCausalLM", "Gemma2", "Glm4ForCausalLM", "Arcee", "Nemotron"),
    *("Mixtral", "Qwen2MoeForCausalLM: shared", "Qwen2MoeForCausalLM: dense", "Glm4Moe"),
)


def saved(case: str, folder: Path) -> Path:
    cls, config = ALL[next(name for name in ALL if name.startswith(case))]
    return save(make_model(cls, config()), folder)


@pytest.mark.parametrize("case", CASES)
def test_bytes_on_each_of_several_gpus_are_those_that_a_rank_sets_aside(tmp_path: Path, case: str) -> None:
    directory = saved(case, tmp_path)
    facts, spec = ModelFacts.of_directory(directory), decoder_spec(Checkpoint.open(str(directory)).config)
    sizes = facts.adapters
    assert sizes is not None
    assert sizes.file_bytes(RANK) == AdapterReader(spec, RANK).num_bytes
    for size in (1, 2, 4):
        with torch.device("meta"), build_for(TensorRanks(0, size)):
            model = CausalLM(spec)
        rank = AdaptedModel(model, spec.naming, torch.bfloat16, torch.device("cpu"))
        assert sizes.num_bytes(facts.shape, size, 2, RANK, COUNT, TOKENS) == rank.num_bytes(RANK, COUNT, TOKENS)


@pytest.mark.parametrize("case", ["GPT2", "DeepseekV2"])
def test_matrices_of_other_names_are_not_guessed_at(tmp_path: Path, case: str) -> None:
    facts = ModelFacts.of_directory(saved(case, tmp_path))
    assert facts.adapters is None
    adapted = service(model={"source": "hf://a/b", "adapters": [{"name": "sql", "source": "hf://a/c"}]})
    plan = plan_of(adapted.spec, facts, Device("CPU", LIMIT, on_gpu=False))
    assert (plan.verdict, plan.reason) == ("Skipped", "NotPlanned")


@pytest.mark.parametrize(
    ("args", "flags"),
    [
        ([], {}),
        (["--max-lora-rank=64", "--max-loras", "6"], {"max_lora_rank": 64, "max_loras": 6}),
        (["--max_cpu_loras=9"], {"max_cpu_loras": 9}),
    ],
)
def test_the_plan_of_a_pod_with_adapters_is_the_engines(
    tmp_path: Path, args: list[str], flags: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (quire_engine.engine, quire_engine.starting.memory):
        monkeypatch.setattr(module, "device_memory", lambda _: Memory(LIMIT, CPU_RESIDENT_BYTES))
    directory = saved("LlamaForCausalLM: grouped heads", tmp_path)
    adapters = [{"name": "sql", "source": "hf://a/c"}]
    spec = service(model={"source": "hf://a/b", "adapters": adapters}, engine={"args": args}).spec
    plan = plan_of(spec, ModelFacts.of_directory(directory), Device("CPU", LIMIT, on_gpu=False))
    built = build_rank(EngineConfig(model=str(directory), device="cpu", enable_lora=True, **flags), None)
    assert built.plan.adapters > 0
    assert (plan.other_bytes, plan.kv_cache_bytes) == (built.plan.others, built.plan.kv_cache)
    assert f"adapters {built.plan.adapters / GIB:.2f} GiB" in plan.message
