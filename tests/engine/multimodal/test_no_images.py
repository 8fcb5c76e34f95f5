"""Without images in prompts a model is its decoder alone, which answers texts as before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quire_engine.config import EngineConfig
from quire_engine.engine import BuiltRank, build_rank
from quire_engine.layers.adapter import DOWN, UP
from quire_engine.llm import LLM
from quire_engine.sampling_params import SamplingParams
from tests.engine.multimodal.llava_checkpoint import TILED, make_llava, picture
from tests.engine.multimodal.phi4_checkpoint import make_phi4
from tests.engine.multimodal.qwen2_checkpoint import make_qwen2

pytestmark = pytest.mark.usefixtures("one_thread")

NONE = "image=0"
MAKERS: dict[str, Callable[[Path], Any]] = {
    "LLaVA": make_llava,
    "LLaVA-NeXT": lambda directory: make_llava(directory, TILED[0]),
    "Phi-4, with its adapter": make_phi4,
    "Qwen2-VL": make_qwen2,
}


@pytest.fixture(scope="module", params=MAKERS)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    made: Path = MAKERS[request.param](tmp_path_factory.mktemp("model")).directory
    return made


def answers(directory: Path, limit: str | None) -> list[list[int]]:
    llm = LLM(str(directory), device="cpu", num_gpu_blocks_override=640, block_size=8, limit_mm_per_prompt=limit)
    params = SamplingParams(temperature=0.0, max_tokens=12)
    prompts = ["what is it?", "is it a cat, or is it a dog that sits there?"]
    return [result.outputs[0].token_ids for result in llm.generate(prompts, params, use_tqdm=False)]


def test_texts_are_answered_alike(directory: Path) -> None:
    assert answers(directory, NONE) == answers(directory, None)


def test_neither_encoder_nor_adapter_is_loaded_or_planned(directory: Path) -> None:
    def build(limit: str | None) -> BuiltRank:
        config = EngineConfig(
            model=str(directory), device="cpu", num_gpu_blocks_override=640, limit_mm_per_prompt=limit
        )
        return build_rank(config, None)

    seeing, blind = build("image=1"), build(NONE)
    names = {name for name, _ in blind.runner._model.named_parameters()}
    others = {name for name, _ in seeing.runner._model.named_parameters()} - names
    assert any(name.startswith("vision.") for name in others)
    assert all(name.startswith("vision.") or name.endswith((UP, DOWN)) for name in others)
    assert not any(name.startswith("vision.") or name.endswith((UP, DOWN)) for name in names)
    assert blind.plan.weights < seeing.plan.weights
    assert (blind.plan.image_room, blind.images) == (0, None)
    assert blind.plan.activations < seeing.plan.activations


def test_an_image_is_refused_by_the_flags_name(directory: Path) -> None:
    llm = LLM(str(directory), device="cpu", num_gpu_blocks_override=640, limit_mm_per_prompt=NONE)
    message = "--limit-mm-per-prompt allows no images"
    with pytest.raises(ValueError, match=message):
        llm.generate({"prompt": "so", "multi_modal_data": {"image": picture(1)}}, use_tqdm=False)
    part = {"type": "image_pil", "image_pil": picture(1)}
    with pytest.raises(ValueError, match=message):
        llm.chat([{"role": "user", "content": [part]}], use_tqdm=False)
