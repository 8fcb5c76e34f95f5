"""Phi-4-multimodal answers about images as transformers does, in float32, however their tokens are scheduled."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image

from quire_engine.attention.context import AttentionContext, PrefillSpan, attention_context
from quire_engine.core.cropped_images import CroppedCount
from quire_engine.llm import LLM
from quire_engine.loading.cropped_pixels import CroppedPixels
from quire_engine.memory_plan.model_facts import ModelFacts
from quire_engine.models.language_model import ImageRows
from quire_engine.sampling_params import SamplingParams
from quire_engine.startup_error import StartupError
from tests.engine.multimodal.asking import prepare_at_once
from tests.engine.multimodal.llava_checkpoint import picture
from tests.engine.multimodal.phi4_checkpoint import IMAGE, IMAGE_ID, Phi4, make_phi4

pytestmark = pytest.mark.usefixtures("one_thread")

NEW_TOKENS = 8
BLOCK_SIZE = 8
PARAMS = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, logit_bias={IMAGE_ID: -100.0})
SIZES = ((40, 28), (64, 64), (130, 70), (20, 300), (500, 400), (65, 63), (900, 90))
ASKED: list[tuple[str, list[Image.Image]]] = [
    ("what is it?", []),
    (f"see {IMAGE} what is it?", [picture(1)]),
    (f"{IMAGE} and {IMAGE} differ?", [picture(2, 130, 70), picture(3, 20, 50)]),
    (f"see {IMAGE} what is it?", [picture(4, 100, 140)]),
    (f"see {IMAGE} what is it?", [picture(1)]),
]


@pytest.fixture(scope="module")
def phi4(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Phi4:
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # it has no types
    return make_phi4(tmp_path_factory.mktemp("phi4"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Phi4:
    """Without an adapter."""
    return make_phi4(tmp_path_factory.mktemp("phi4"), adapted=False)


def load(phi4: Phi4, **changes: Any) -> LLM:
    settings = {"block_size": BLOCK_SIZE, "num_gpu_blocks_override": 640} | changes
    return LLM(str(phi4.directory), device="cpu", dtype="float32", **settings)


def answers(llm: LLM, asked: list[tuple[str, list[Image.Image]]]) -> list[list[int]]:
    prompts: Any = [
        {"prompt": text, "multi_modal_data": {"image": images}} if images else text for text, images in asked
    ]
    made = [result.outputs[0].token_ids for result in llm.generate(prompts, PARAMS, use_tqdm=False)]
    llm.core.check_integrity()
    return made


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_images_of_any_size_are_prepared_and_counted_as_transformers_does(phi4: Phi4, size: tuple[int, int]) -> None:
    image, count = picture(7, *size), CroppedCount(64, 2, 6)
    made, expected = CroppedPixels(count, {})(image), phi4.processor(image, return_tensors="pt")
    assert count.of(*size) == expected["num_img_tokens"][0]
    for name, tensor in made.items():
        torch.testing.assert_close(tensor.float(), expected[name].float(), rtol=0, atol=0)


def test_an_image_that_is_far_too_narrow_is_refused(phi4: Phi4) -> None:
    count = CroppedCount(64, 2, 6)
    with pytest.raises(ValueError, match="extreme"):
        phi4.processor(picture(1, 900, 9), return_tensors="pt")
    with pytest.raises(ValueError, match="one side is too short"):
        count.of(900, 9)


@pytest.mark.parametrize("size", SIZES[1:5], ids=str)
@torch.no_grad()
def test_logits_about_an_image_are_those_of_transformers(phi4: Phi4, size: tuple[int, int]) -> None:
    llm = load(phi4)
    model: Any = llm.core._executor._model  # type: ignore[attr-defined]  # the seam names no model
    image = picture(5, *size)
    inputs = phi4.inputs(f"see {IMAGE} what?", [image])
    ids = inputs["input_ids"][0]
    embedded = model.embed_image(CroppedPixels(CroppedCount(64, 2, 6), {})(image))
    rows = ImageRows((ids == IMAGE_ID).nonzero()[:, 0], embedded)
    count = len(ids)
    span = PrefillSpan(0, count, 0, torch.arange(-(-count // BLOCK_SIZE)))
    context = AttentionContext(
        torch.arange(count), 0, [], torch.zeros(0, 0, dtype=torch.int64), [span], adapted=torch.arange(count)
    )
    with attention_context(context):
        logits = model.logits(model(ids, torch.arange(count), images=rows))
    torch.testing.assert_close(logits, phi4.model_of_images(**inputs).logits[0], rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def expected(phi4: Phi4) -> list[list[int]]:
    found = [phi4.answer(text, images, NEW_TOKENS) for text, images in ASKED]
    assert found[1] != found[3], "it does not see what is in an image"
    return found


@pytest.mark.parametrize("budget", [2048, 300], ids=["whole", "chunks"])
@pytest.mark.parametrize("caching", [True, False], ids=["cache", "no cache"])
def test_prompts_with_0_1_and_2_images_at_once_are_answered_as_transformers_answers_each(
    phi4: Phi4, expected: list[list[int]], budget: int, caching: bool
) -> None:
    llm = load(phi4, max_num_batched_tokens=budget, enable_prefix_caching=caching)
    assert answers(llm, ASKED) == expected
    assert answers(llm, ASKED[::-1]) == expected[::-1]


@pytest.mark.parametrize("swap_space", [0, 0.01], ids=["recomputed", "swapped"])
def test_preempted_requests_are_answered_alike(phi4: Phi4, expected: list[list[int]], swap_space: float) -> None:
    text, images = ASKED[1]
    length = phi4.inputs(text, images)["input_ids"].shape[1]
    llm = load(
        phi4,
        num_gpu_blocks_override=2 * -(-length // BLOCK_SIZE) + 1,  # room for two prompts, and not for two answers
        max_model_len=length + NEW_TOKENS,
        max_num_batched_tokens=512,
        swap_space=swap_space,
        enable_prefix_caching=False,
    )
    prepare_at_once(llm)
    order = [1, 4, 0, 0]
    assert answers(llm, [ASKED[i] for i in order]) == [expected[i] for i in order]
    assert llm.core.stats().num_preemptions > 0


def test_without_an_adapter_all_prompts_are_answered_by_the_same_weights(plain: Phi4) -> None:
    asked = ASKED[:3]
    assert answers(load(plain), asked) == [plain.answer(text, images, NEW_TOKENS) for text, images in asked]


def test_prompts_with_images_share_no_pages_with_others_which_have_no_adapter(phi4: Phi4, plain: Phi4) -> None:
    begin = "they all begin with these words: "

    def cached(made: Phi4) -> int:
        llm = load(made)
        answers(llm, [(begin, [])])
        prompt: Any = {"prompt": f"{begin}{IMAGE}", "multi_modal_data": {"image": picture(1)}}
        return llm.generate(prompt, PARAMS, use_tqdm=False)[0].num_cached_tokens or 0

    assert cached(phi4) == 0
    assert cached(plain) == len(begin) // BLOCK_SIZE * BLOCK_SIZE


def test_the_plan_counts_the_adapter_and_leaves_out_the_encoder_of_sounds(phi4: Phi4) -> None:
    model: Any = load(phi4).core._executor._model  # type: ignore[attr-defined]  # the seam names no model
    held = sum(parameter.numel() for parameter in model.parameters())
    assert ModelFacts.of_directory(phi4.directory).weights.elements == held
    assert not any("audio" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "use_dora is True: only False is supported"),
        ({"r": 0}, "r is 0: it must be a number above 0"),
        ({"r": 5}, "lora_A.weight has the shape"),
        ({"bias": "all"}, "bias is 'all'"),
        (None, "lacks adapter_model.safetensors"),
    ],
)
def test_an_adapter_that_is_wrong_is_refused(
    phi4: Phi4, tmp_path: Path, settings: dict[str, Any] | None, message: str
) -> None:
    shutil.copytree(phi4.directory, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "vision-lora" / "adapter_config.json"
    if settings is None:
        (file.parent / "adapter_model.safetensors").unlink()
    else:
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    with pytest.raises(StartupError, match=message):
        load(replace(phi4, directory=tmp_path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dynamic_hd": 0}, "dynamic_hd of the image processor is 0: it must be between 1 and 256"),
        ({"size": {"height": 32, "width": 32}}, "size of the image processor"),
        ({"image_std": [0.5, 0, 0.5]}, "image_std is"),
        ({"do_normalize": False}, "do_normalize is False: it must be true"),
    ],
)
def test_an_image_processor_that_does_not_fit_is_refused(
    phi4: Phi4, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    shutil.copytree(phi4.directory, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    with pytest.raises(StartupError, match=message):
        load(replace(phi4, directory=tmp_path))


def test_the_flag_sets_how_many_crops_there_are_as_it_does_for_transformers(phi4: Phi4) -> None:
    load_processor: Any = transformers.Phi4MultimodalImageProcessor.from_pretrained
    reference = replace(phi4, processor=load_processor(phi4.directory, dynamic_hd=2))
    asked = [(f"see {IMAGE} what is it?", [picture(4, 130, 200)])]
    expected = [reference.answer(text, images, NEW_TOKENS) for text, images in asked]
    assert answers(load(phi4, mm_processor_kwargs='{"dynamic_hd": 2}'), asked) == expected
    assert expected != [phi4.answer(text, images, NEW_TOKENS) for text, images in asked]
    with pytest.raises(StartupError, match="dynamic_hd is 300: it must be a whole number between 1 and 256"):
        load(phi4, mm_processor_kwargs='{"dynamic_hd": 300}')


def test_an_image_that_the_model_does_not_take_is_refused_offline(phi4: Phi4) -> None:
    prompt: Any = {"prompt": IMAGE, "multi_modal_data": {"image": picture(1, 900, 9)}}
    with pytest.raises(ValueError, match="one side is too short for the other"):
        load(phi4).generate(prompt, PARAMS, use_tqdm=False)
