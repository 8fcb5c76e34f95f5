"""Images of any shape, cut into tiles: as many tokens, the same logits and the same answers as transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlavaNextImageProcessorPil, LlavaNextProcessor

from quire_engine.attention.context import AttentionContext, PrefillSpan, attention_context
from quire_engine.core.images import PromptImage
from quire_engine.core.tiles import TiledCount
from quire_engine.llm import LLM
from quire_engine.models.language_model import ImageRows
from quire_engine.multimodal.image_files import checked
from quire_engine.startup_error import StartupError
from tests.engine.multimodal.asking import NEW_TOKENS, PARAMS, Asked, answers, embedder_of, load, preparer_of
from tests.engine.multimodal.llava_checkpoint import CASES, IMAGE, TILED, Llava, file_of, picture

pytestmark = pytest.mark.usefixtures("one_thread")

ASKED: list[Asked] = [
    ("USER: what is it? ", []),
    (f"USER: {IMAGE}\nwhat is it? ", [picture(1)]),
    (f"USER: {IMAGE} and {IMAGE} differ? ", [picture(2, 100, 90), picture(3, 20, 50)]),
    (f"{IMAGE}{IMAGE}", [picture(4, 9, 60), picture(4, 9, 60)]),
    (f"wide {IMAGE} ", [picture(5, 200, 10)]),
    (f"USER: {IMAGE}\nwhat is it? ", [picture(6)]),
    (f"flat {IMAGE}, small {IMAGE}", [picture(7, 190, 2), picture(8, 1, 1)]),
]
USUAL = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


@pytest.mark.parametrize("case", TILED)
@pytest.mark.parametrize(
    ("budget", "caching"),
    [(2048, True), (16, True), (16, False), pytest.param(5, True, marks=pytest.mark.slow)],
    ids=["whole", "chunks", "chunks, no cache", "tiny chunks"],
)
def test_images_of_any_shape_at_once_are_answered_as_transformers_answers_each(
    llavas: Callable[[str], Llava], case: str, budget: int, caching: bool
) -> None:
    llava = llavas(case)
    expected = [llava.answer(text, images, NEW_TOKENS) for text, images in ASKED]
    assert expected[1] != expected[5], "it does not see what is in an image"
    llm = load(llava, max_num_batched_tokens=budget, enable_prefix_caching=caching)
    assert answers(llm, ASKED) == expected
    assert answers(llm, ASKED[::-1]) == expected[::-1]


@pytest.mark.parametrize("case", TILED)
def test_prompts_alone_are_answered_as_in_a_batch(llavas: Callable[[str], Llava], case: str) -> None:
    llava = llavas(case)
    llm = load(llava, enable_prefix_caching=False)
    for text, images in ASKED[1:4]:
        assert answers(llm, [(text, images)]) == [llava.answer(text, images, NEW_TOKENS)]


@torch.no_grad()
def logits_of(llm: LLM, llava: Llava, text: str, data: bytes) -> torch.Tensor:
    """The engine's logits [tokens, vocab_size] after each token of a prompt with one image, computed in one step."""
    model: Any = llm.core._executor._model  # type: ignore[attr-defined]  # the seam names no model
    file = checked(data)
    image = PromptImage(data, b"", 0, 1, file.width, file.height)
    embedded = embedder_of(llm)._embed(preparer_of(llm).take([image])[b""])
    ids: list[int] = []
    for token in llava.ids(text):
        ids += [token] * (len(embedded) if token == 96 else 1)
    count = len(ids)
    rows = torch.tensor([i for i, token in enumerate(ids) if token == 96])
    span = PrefillSpan(0, count, 0, torch.arange(-(-count // 8)))
    context = AttentionContext(
        torch.arange(count), 0, [], torch.zeros(0, 0, dtype=torch.int64), [span], torch.full((count,), count)
    )
    with attention_context(context):
        hidden = model(torch.tensor(ids), torch.arange(count), images=ImageRows(rows, embedded))
        logits: torch.Tensor = model.logits(hidden)
    return logits


@pytest.mark.parametrize("case", [*CASES, *TILED])
@pytest.mark.parametrize("size", [(40, 28), (20, 70), (100, 100)])
def test_logits_are_those_of_transformers(llavas: Callable[[str], Llava], case: str, size: tuple[int, int]) -> None:
    llava, image = llavas(case), picture(1, *size)
    text = f"look: {IMAGE}\nwhat is it?"
    inputs = llava.processor(text=text, images=[image], return_tensors="pt")
    with torch.no_grad():
        expected = llava.model(**inputs, use_cache=False).logits[0]
    torch.testing.assert_close(logits_of(load(llava), llava, text, file_of(image)), expected, rtol=0, atol=1e-4)


def test_equal_images_share_pages_and_others_of_the_same_size_do_not(llavas: Callable[[str], Llava]) -> None:
    llm = load(llavas(TILED[0]))
    prompt = f"{IMAGE} is it a cat or is it a dog?"

    def cached(seed: int) -> int:
        asked: Any = {"prompt": prompt, "multi_modal_data": {"image": picture(seed, 100, 90)}}
        (result,) = llm.generate(asked, PARAMS, use_tqdm=False)
        return result.num_cached_tokens or 0

    assert [cached(1), cached(2)] == [0, 0]
    assert cached(1) >= 48


def processor_of(grids: list[list[int]]) -> Any:
    """transformers' own, without a tokenizer: it only counts."""
    made: Any = LlavaNextProcessor.__new__(LlavaNextProcessor)
    made.image_processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}, image_grid_pinpoints=grids
    )
    made.patch_size, made.num_additional_image_tokens, made.vision_feature_select_strategy = 14, 1, "default"
    return made


@given(width=st.integers(1, 5000), height=st.integers(1, 5000), more=st.booleans())
def test_an_image_of_any_size_has_as_many_tokens_as_in_transformers(width: int, height: int, more: bool) -> None:
    grids = [*USUAL, [336, 336], [1344, 336], [672, 1008]] if more else USUAL
    count = TiledCount(336, 24, tuple((rows // 336, columns // 336) for rows, columns in grids))
    expected = processor_of(grids)._get_number_of_features(height, width, 336, 336) - 1
    assert count.of(width, height) == expected


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("image_grid_pinpoints", [[24, 50]], "image_grid_pinpoints is .* multiples of vision_config.image_size, 24"),
        ("image_grid_pinpoints", [], "image_grid_pinpoints is"),
        ("image_grid_pinpoints", [[24]], "image_grid_pinpoints is"),
        ("image_grid_pinpoints", [[0, 24]], "image_grid_pinpoints is"),
        ("image_grid_pinpoints", [[2400, 2400]], "at most 64 such squares"),
        ("image_grid_pinpoints", "anyres", "image_grid_pinpoints is 'anyres'"),
        ("vision_feature_select_strategy", "full", "vision_feature_select_strategy is 'full'"),
    ],
)
def test_a_config_that_no_image_fits_is_refused_by_name(
    llavas: Callable[[str], Llava], tmp_path: Path, name: str, value: object, message: str
) -> None:
    written = json.loads((llavas(TILED[0]).directory / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(written | {name: value}))
    with pytest.raises(StartupError, match=message):
        LLM(str(tmp_path), device="cpu", load_format="dummy")


def test_the_grids_of_config_json_win_over_those_of_the_image_processor(
    llavas: Callable[[str], Llava], tmp_path: Path
) -> None:
    llava = llavas(TILED[0])
    for file in llava.directory.iterdir():
        (tmp_path / file.name).symlink_to(file)
    settings = json.loads((llava.directory / "processor_config.json").read_text())
    settings["image_processor"]["image_grid_pinpoints"] = [[24, 24]]
    (tmp_path / "processor_config.json").unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps(settings))
    expected = [llava.answer(text, images, NEW_TOKENS) for text, images in ASKED[1:3]]
    assert answers(load(Llava(tmp_path, llava.model, llava.processor)), ASKED[1:3]) == expected
