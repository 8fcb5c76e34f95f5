"""Questions about images, and the engine's greedy answers to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from quire_engine.core.images import PromptImage
from quire_engine.execution.image_embedder import ImageEmbedder
from quire_engine.llm import LLM
from quire_engine.multimodal.preparation import ImagePreparer, Pending
from quire_engine.sampling_params import SamplingParams
from tests.engine.multimodal.llava_checkpoint import Llava

Asked = tuple[str, list[Image.Image]]
"""A prompt, and the images in it."""

NEW_TOKENS = 10
PARAMS = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS)


def load(llava: Llava, **changes: Any) -> LLM:
    settings = {"block_size": 8, "num_gpu_blocks_override": 128} | changes
    return LLM(str(llava.directory), device="cpu", dtype="float32", **settings)


def prompts(asked: list[Asked]) -> list[Any]:
    return [{"prompt": text, "multi_modal_data": {"image": images}} if images else text for text, images in asked]


def embedder_of(llm: LLM) -> ImageEmbedder:
    executor: Any = llm.core._executor
    found: ImageEmbedder = executor._images
    return found


def preparer_of(llm: LLM) -> ImagePreparer:
    found = llm.core._images
    assert isinstance(found, ImagePreparer)
    return found


def prepare_at_once(llm: LLM) -> None:
    """Have all requests be schedulable when they come, so that they meet each other."""
    preparer = preparer_of(llm)
    prepare = preparer.prepare

    def waiting(images: Sequence[PromptImage]) -> Pending:
        pending = prepare(images)
        pending.wait(60)
        return pending

    preparer.prepare = waiting  # type: ignore[method-assign]  # so that a test can step on at once


def answers(llm: LLM, asked: list[Asked]) -> list[list[int]]:
    made = [result.outputs[0].token_ids for result in llm.generate(prompts(asked), PARAMS, use_tqdm=False)]
    llm.core.check_integrity()
    assert embedder_of(llm).num_kept == 0
    return made
