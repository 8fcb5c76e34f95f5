"""The operator's plan, made from headers, and the engine's memory, as allocated, are the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import quire_engine.engine
import quire_engine.starting.memory
from quire_engine.config import EngineConfig
from quire_engine.engine import build_engine, build_rank
from quire_engine.execution.device import Memory
from quire_engine.memory_plan.architectures import ARCHITECTURES
from quire_engine.memory_plan.architectures import ENCODERS as PLANNED_ENCODERS
from quire_engine.memory_plan.model_facts import ModelFacts
from quire_engine.memory_plan.model_shape import ModelShape
from quire_engine.memory_plan.plan import CPU_POOL_AT_MOST, GIB
from quire_engine.models.registry import ENCODERS as SERVED_ENCODERS
from quire_engine.models.registry import FAMILIES as SERVED
from quire_engine.models.registry import decoder_spec
from quire_operator.plan.fit import CPU_RESIDENT_BYTES
from quire_operator.plan.gpu_memory import Device
from quire_operator.plan.service_plan import plan_of
from tests.engine.models.checkpoints import ALL, ENCODERS, make_model, save
from tests.engine.models.families import ENCODERS as TESTED_ENCODERS
from tests.engine.models.families import FAMILIES as TESTED
from tests.operator.services import service

pytestmark = pytest.mark.usefixtures("one_thread")

LIMIT = 5 * GIB


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
@pytest.mark.parametrize("name", [*ALL, *ENCODERS])
def test_weights_and_kv_bytes_per_token_are_those_of_the_engine(tmp_path: Path, name: str, dtype: str) -> None:
    cls, config = (ALL | ENCODERS)[name]
    save(make_model(cls, config()), tmp_path)
    spec = service(model={"source": "hf://org/name", "dtype": dtype}).spec
    plan = plan_of(spec, ModelFacts.of_directory(tmp_path), Device("CPU", 4 << 30, on_gpu=False))
    core, info = build_engine(EngineConfig(model=str(tmp_path), device="cpu", dtype=dtype, num_gpu_blocks_override=64))
    model: Any = core._executor._model  # type: ignore[attr-defined]  # the seam names no model
    assert plan.weights_bytes == sum(p.numel() * p.element_size() for p in model.parameters())
    caches = {cache.data_ptr(): cache for layer in model.attention_layers() for cache in (layer.k_cache, layer.v_cache)}
    allocated = sum(cache.numel() * cache.element_size() for cache in caches.values())
    assert model.shape.writes_scores == any(not layer.fused for layer in model.attention_layers())
    assert (plan.kv_bytes_per_token or 0) * info.num_blocks * info.block_size == allocated
    assert plan.max_model_len == info.max_model_len


@pytest.mark.parametrize("name", [*ALL, *ENCODERS])
def test_the_pool_of_a_pod_is_the_one_that_the_engine_allocates(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a process that is as large as the operator takes it to be."""
    for module in (quire_engine.engine, quire_engine.starting.memory):
        monkeypatch.setattr(module, "device_memory", lambda _: Memory(LIMIT, CPU_RESIDENT_BYTES))
    cls, config = (ALL | ENCODERS)[name]
    save(make_model(cls, config()), tmp_path)
    spec = service(model={"source": "hf://org/name"}).spec
    plan = plan_of(spec, ModelFacts.of_directory(tmp_path), Device("CPU", LIMIT, on_gpu=False))
    built = build_rank(EngineConfig(model=str(tmp_path), device="cpu"), None)
    assert (plan.activations_bytes, plan.other_bytes) == (built.plan.activations, built.plan.others)
    assert (plan.tokens, plan.kv_cache_bytes) == (built.plan.num_tokens, built.plan.kv_cache)
    assert built.plan.kv_cache < CPU_POOL_AT_MOST, "it is as large as there is memory"
    if name not in ENCODERS:
        usable = int(LIMIT * 0.9)
        used = built.plan.weights + built.plan.activations + built.plan.others + built.plan.kv_cache
        assert 0 <= usable - used < 0.03 * built.plan.kv_cache


def test_the_architectures_that_are_planned_are_those_that_are_served_and_tested() -> None:
    assert {family.architecture for family in TESTED} == set(SERVED)
    assert set(ARCHITECTURES) == set(SERVED)
    assert {family.architecture for family in TESTED_ENCODERS} == set(SERVED_ENCODERS) == set(PLANNED_ENCODERS)


@pytest.mark.parametrize("name", [*ALL, *ENCODERS])
@pytest.mark.parametrize("left_out", ["nothing", "head_dim", "num_key_value_heads"])
def test_the_shape_that_is_planned_with_is_the_one_that_is_served(tmp_path: Path, name: str, left_out: str) -> None:
    cls, config = (ALL | ENCODERS)[name]
    save(make_model(cls, config()), tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    written.pop(left_out, None)
    spec = decoder_spec(written)
    assert ModelShape.of_known_architecture(written) == spec.shape
