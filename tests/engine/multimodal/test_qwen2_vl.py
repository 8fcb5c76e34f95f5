"""Qwen2-VL answers about images as transformers does, in float32, however their tokens are scheduled."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from quire_engine.attention.context import AttentionContext, PrefillSpan, attention_context
from quire_engine.core.images import PromptImage
from quire_engine.core.merged_patches import MergedCount
from quire_engine.execution.image_positions import ImagePositions
from quire_engine.llm import LLM
from quire_engine.memory_plan.model_facts import ModelFacts
from quire_engine.memory_plan.model_shape import ModelShape
from quire_engine.models.language_model import ImageRows
from quire_engine.sampling_params import BeamSearchParams, SamplingParams
from quire_engine.startup_error import StartupError
from tests.engine.multimodal.asking import prepare_at_once
from tests.engine.multimodal.llava_checkpoint import picture
from tests.engine.multimodal.qwen2_checkpoint import CASES, IMAGE, IMAGE_ID, Qwen2, make_qwen2

pytestmark = pytest.mark.usefixtures("one_thread")

NEW_TOKENS = 10
BLOCK_SIZE = 8
PARAMS = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, logit_bias={IMAGE_ID: -100.0})
SIZES = ((40, 28), (48, 48), (130, 70), (20, 300), (7, 9), (11, 90))
ASKED: list[tuple[str, list[Image.Image]]] = [
    ("what is it?", []),
    (f"see {IMAGE} what is it?", [picture(1)]),
    (f"{IMAGE} and {IMAGE} differ?", [picture(2, 130, 70), picture(3, 20, 50)]),
    (f"see {IMAGE} what is it?", [picture(4, 100, 14)]),
    (f"{IMAGE} {IMAGE}?", [picture(1), picture(1)]),
    (f"see {IMAGE} what is it?", [picture(1)]),
]


@pytest.fixture(scope="module")
def qwens(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Callable[[str], Qwen2]:
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # it has no types
    made: dict[str, Qwen2] = {}

    def get(case: str) -> Qwen2:
        if case not in made:
            made[case] = make_qwen2(tmp_path_factory.mktemp("qwen2"), case)
        return made[case]

    return get


@pytest.fixture(scope="module")
def qwen2(qwens: Callable[[str], Qwen2]) -> Qwen2:
    return qwens(CASES[0])


def load(qwen2: Qwen2, **changes: Any) -> LLM:
    settings = {"block_size": BLOCK_SIZE, "num_gpu_blocks_override": 128} | changes
    return LLM(str(qwen2.directory), device="cpu", dtype="float32", **settings)


def prompts(asked: list[tuple[str, list[Image.Image]]]) -> list[Any]:
    return [{"prompt": text, "multi_modal_data": {"image": images}} if images else text for text, images in asked]


def answers(llm: LLM, asked: list[tuple[str, list[Image.Image]]]) -> list[list[int]]:
    made = [result.outputs[0].token_ids for result in llm.generate(prompts(asked), PARAMS, use_tqdm=False)]
    llm.core.check_integrity()
    return made


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_an_image_has_as_many_tokens_as_transformers_gives_it(qwen2: Qwen2, size: tuple[int, int]) -> None:
    _, rows, columns = qwen2.processor(picture(7, *size), return_tensors="pt")["image_grid_thw"][0].tolist()
    assert MergedCount(8, 256, 2304).grid(*size) == (rows // 2, columns // 2)


def test_an_image_that_is_far_too_narrow_is_refused(qwen2: Qwen2) -> None:
    with pytest.raises(ValueError, match="aspect ratio"):
        qwen2.processor(picture(1, 900, 4), return_tensors="pt")
    with pytest.raises(ValueError, match="one side may be at most 200 times as long as the other"):
        MergedCount(8, 256, 2304).of(900, 4)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(8, 60), st.integers(8, 60)), min_size=1, max_size=4), st.data()
)
def test_positions_are_the_same_however_a_prompt_is_cut(parts: list[tuple[int, int, int]], data: st.DataObject) -> None:
    count, images, end = MergedCount(8, 256, 2304), [], 0
    for gap, width, height in parts:
        images.append(PromptImage(b"", b"", end + gap, count.of(width, height), width, height))
        end = images[-1].end
    positions, length = ImagePositions(images, count), end + 5
    whole = positions.of(0, length)
    cut = data.draw(st.integers(0, length))
    assert np.array_equal(np.concatenate((positions.of(0, cut), positions.of(cut, length)), axis=1), whole)
    assert [int(positions.of(i, i + 1)[2, 0]) for i in range(length)] == whole[2].tolist()


def test_positions_are_those_of_transformers(qwen2: Qwen2) -> None:
    text, images = ASKED[2]
    inputs = qwen2.inputs(f"so {text}", images)
    kinds, grid = inputs["mm_token_type_ids"], inputs["image_grid_thw"]
    expected, _ = qwen2.model.model.get_rope_index(inputs["input_ids"], kinds, grid)
    count, ids = MergedCount(8, 256, 2304), inputs["input_ids"][0].tolist()
    own, end = [], 0
    for image in images:
        own.append(PromptImage(b"", b"", ids.index(IMAGE_ID, end), count.of(*image.size), *image.size))
        end = own[-1].end
    assert ImagePositions(own, count).of(0, len(ids)).tolist() == expected[:, 0].tolist()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", SIZES[:4], ids=str)
@torch.no_grad()
def test_logits_about_an_image_are_those_of_transformers(
    qwens: Callable[[str], Qwen2], case: str, size: tuple[int, int]
) -> None:
    qwen2 = qwens(case)
    model: Any = load(qwen2).core._executor._model  # type: ignore[attr-defined]  # the seam names no model
    image = picture(5, *size)
    inputs = qwen2.inputs(f"see {IMAGE} what?", [image])
    ids, names = inputs["input_ids"][0], ("pixel_values", "image_grid_thw")
    rows = ImageRows((ids == IMAGE_ID).nonzero()[:, 0], model.embed_image({name: inputs[name] for name in names}))
    count = len(ids)
    positions, _ = qwen2.model.model.get_rope_index(**{k: v for k, v in inputs.items() if k != "pixel_values"})
    span = PrefillSpan(0, count, 0, torch.arange(-(-count // BLOCK_SIZE)))
    context = AttentionContext(
        torch.arange(count), 0, [], torch.zeros(0, 0, dtype=torch.int64), [span], axes=positions[:, 0]
    )
    with attention_context(context):
        logits = model.logits(model(ids, torch.arange(count), images=rows))
    torch.testing.assert_close(logits, qwen2.model(**inputs).logits[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("budget", [2048, 16, 5], ids=["whole", "chunks", "tiny chunks"])
@pytest.mark.parametrize("caching", [True, False], ids=["cache", "no cache"])
def test_prompts_with_0_1_and_2_images_at_once_are_answered_as_transformers_answers_each(
    qwens: Callable[[str], Qwen2], case: str, budget: int, caching: bool
) -> None:
    qwen2 = qwens(case)
    expected = [qwen2.answer(text, images, NEW_TOKENS) for text, images in ASKED]
    assert expected[1] != expected[3], "it does not see what is in an image"
    llm = load(qwen2, max_num_batched_tokens=budget, enable_prefix_caching=caching)
    assert answers(llm, ASKED) == expected
    assert answers(llm, ASKED[::-1]) == expected[::-1]


@pytest.mark.parametrize("swap_space", [0, 0.01], ids=["recomputed", "swapped"])
def test_preempted_requests_are_answered_alike(qwen2: Qwen2, swap_space: float) -> None:
    asked = [(f"{text} number {i}", images) for i in range(3) for text, images in ASKED]
    expected = [qwen2.answer(text, images, NEW_TOKENS) for text, images in asked]
    sizes = {"num_gpu_blocks_override": 18, "max_model_len": 136, "max_num_batched_tokens": 16}
    llm = load(qwen2, swap_space=swap_space, **sizes)
    prepare_at_once(llm)
    assert answers(llm, asked) == expected
    assert llm.core.stats().num_preemptions > 0


def test_a_cached_image_is_found_and_what_follows_it_stands_where_it_did(qwen2: Qwen2) -> None:
    text, images = f"{IMAGE} is it a cat or is it a dog?", [picture(4, 100, 14)]
    llm, expected = load(qwen2), qwen2.answer(text, images, NEW_TOKENS)
    for cached in (False, True):
        (result,) = llm.generate(prompts([(text, images)]), PARAMS, use_tqdm=False)
        assert result.outputs[0].token_ids == expected
        assert bool(result.num_cached_tokens) == cached


def test_several_answers_and_beams_about_an_image(qwen2: Qwen2) -> None:
    text, images = ASKED[3]
    llm, expected = load(qwen2, max_num_batched_tokens=16), qwen2.answer(text, images, NEW_TOKENS)
    several = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, n=3, logit_bias={IMAGE_ID: -100.0})
    (result,) = llm.generate(prompts([(text, images)]), several, use_tqdm=False)
    assert [answer.token_ids for answer in result.outputs] == [expected] * 3
    (found,) = llm.beam_search(prompts([(text, images)]), BeamSearchParams(beam_width=3, max_tokens=NEW_TOKENS))
    inputs = qwen2.inputs(text, images)
    best = qwen2.model.generate(**inputs, max_new_tokens=NEW_TOKENS, num_beams=3, do_sample=False)[0]
    assert found.sequences[0].tokens == best.tolist()


def test_tensors_may_be_nested_and_the_decoders_sizes_stand_beside_the_encoders(qwen2: Qwen2, tmp_path: Path) -> None:
    shutil.copytree(qwen2.directory, tmp_path, dirs_exist_ok=True)

    def nested(name: str) -> str:
        if name.startswith("visual."):
            return f"model.{name}"
        return name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name

    tensors = load_file(tmp_path / "model.safetensors")
    save_file({nested(name): tensor for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    own = {"rope_theta": rope["rope_theta"], "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]}}
    (tmp_path / "config.json").write_text(json.dumps(text | config | own))
    question, images = ASKED[2]
    llm = load(replace(qwen2, directory=tmp_path))
    assert answers(llm, [(question, images)]) == [qwen2.answer(question, images, NEW_TOKENS)]
    model: Any = llm.core._executor._model  # type: ignore[attr-defined]  # the seam names no model
    held = sum(parameter.numel() for parameter in model.parameters())
    assert ModelFacts.of_directory(tmp_path).weights.elements == held


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"merge_size": 4}, "merge_size of the image processor is 4 and config.json asks for 2"),
        ({"max_pixels": 0}, "min_pixels and max_pixels of the image processor are 256 and 0"),
        ({"max_pixels": 1 << 30}, "at most 33554432"),
        ({"size": 5}, "size of the image processor is 5"),
    ],
)
def test_an_image_processor_that_does_not_fit_is_refused(
    qwen2: Qwen2, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    shutil.copytree(qwen2.directory, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    with pytest.raises(StartupError, match=message):
        load(replace(qwen2, directory=tmp_path))


def test_the_flag_sets_how_large_images_are_as_it_does_for_transformers(qwen2: Qwen2) -> None:
    tuned: dict[str, Any] = {"min_pixels": 64 * 12, "max_pixels": 64 * 16}
    load_processor: Any = transformers.AutoImageProcessor.from_pretrained
    reference = replace(qwen2, processor=load_processor(qwen2.directory, backend="pil", **tuned))
    llm = load(qwen2, mm_processor_kwargs=tuned)
    expected = [reference.answer(text, images, NEW_TOKENS) for text, images in ASKED]
    assert answers(llm, ASKED) == expected
    assert expected != [qwen2.answer(text, images, NEW_TOKENS) for text, images in ASKED]


def test_smaller_images_leave_more_memory(qwen2: Qwen2) -> None:
    def shape(text: str | None) -> ModelShape:
        model: Any = load(qwen2, mm_processor_kwargs=text).core._executor._model  # type: ignore[attr-defined]  # the seam names no model
        found: ModelShape = model.shape
        return found

    usual, small = shape(None), shape('{"max_pixels": 512}')
    assert (usual.image_tokens, small.image_tokens) == (84, 40)  # of images 200 times as long as wide
    assert small.image_elements < usual.image_elements / 2
    assert small.image_pixels == usual.image_pixels * 40 / 84


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_pixels=512", "--mm-processor-kwargs is 'max_pixels=512': it must be a JSON object"),
        ('{"patches": 4}', "has 'patches': Qwen2VLForConditionalGeneration has min_pixels, max_pixels"),
        ('{"max_pixels": "512"}', "max_pixels is '512': it must be a whole number between 1 and 33554432"),
        ('{"max_pixels": true}', "max_pixels is True"),
        ('{"max_pixels": 0}', "max_pixels is 0: it must be a whole number between 1"),
        ('{"max_pixels": 100}', r'with --mm-processor-kwargs {"max_pixels": 100}: min_pixels and max_pixels of .* 256'),
    ],
)
def test_settings_that_the_image_processor_does_not_have_are_refused(qwen2: Qwen2, text: str, message: str) -> None:
    with pytest.raises((StartupError, ValueError), match=message):
        load(qwen2, mm_processor_kwargs=text)


def test_sections_that_do_not_fill_a_head_are_refused(qwen2: Qwen2, tmp_path: Path) -> None:
    shutil.copytree(qwen2.directory, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["rope_parameters"]["mrope_section"] = [2, 2, 2]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(StartupError, match=r"mrope_section is .* it must be three numbers of pairs, 8 in all"):
        load(replace(qwen2, directory=tmp_path))


def test_angles_that_depend_on_the_length_are_refused(qwen2: Qwen2, tmp_path: Path) -> None:
    shutil.copytree(qwen2.directory, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["rope_parameters"] |= {"rope_type": "dynamic", "factor": 2.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(StartupError, match="rope_type is 'dynamic', whose angles depend on a text's length"):
        load(replace(qwen2, directory=tmp_path))
