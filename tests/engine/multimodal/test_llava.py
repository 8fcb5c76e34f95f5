"""Greedy answers about images, in float32, are transformers' own, however their tokens are scheduled."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from quire_engine.core.messages import EngineRequest
from quire_engine.memory_plan.model_facts import ModelFacts
from quire_engine.multimodal.image_files import checked
from quire_engine.multimodal.placeholders import expanded
from quire_engine.sampling_params import BeamSearchParams, SamplingParams
from quire_engine.startup_error import StartupError
from tests.engine.multimodal.asking import (
    NEW_TOKENS,
    PARAMS,
    Asked,
    answers,
    embedder_of,
    load,
    prepare_at_once,
    prompts,
)
from tests.engine.multimodal.llava_checkpoint import CASES, IMAGE, TILED, Llava, file_of, make_llava, picture

pytestmark = pytest.mark.usefixtures("one_thread")

ASKED: list[Asked] = [
    ("USER: what is it? ", []),
    (f"USER: {IMAGE}\nwhat is it? ", [picture(1)]),
    (f"USER: {IMAGE} and {IMAGE} differ? ", [picture(2), picture(3, 20, 50)]),
    ("once upon a time", []),
    (f"{IMAGE}{IMAGE}", [picture(4), picture(4)]),
    (f"USER: {IMAGE}\nwhat is it? ", [picture(5)]),
]

PLAIN = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"


@pytest.fixture(scope="module")
def llava(llavas: Callable[[str], Llava]) -> Llava:
    return llavas(CASES[0])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("budget", [2048, 16, 5], ids=["whole", "chunks", "tiny chunks"])
@pytest.mark.parametrize("caching", [True, False], ids=["cache", "no cache"])
def test_prompts_with_0_1_and_2_images_at_once_are_answered_as_transformers_answers_each(
    llavas: Callable[[str], Llava], case: str, budget: int, caching: bool
) -> None:
    llava = llavas(case)
    expected = [llava.answer(text, images, NEW_TOKENS) for text, images in ASKED]
    assert expected[1] != expected[-1], "it does not see what is in an image"
    llm = load(llava, max_num_batched_tokens=budget, enable_prefix_caching=caching)
    assert answers(llm, ASKED) == expected
    assert answers(llm, ASKED[::-1]) == expected[::-1]


@pytest.mark.parametrize("swap_space", [0, 0.01], ids=["recomputed", "swapped"])
def test_preempted_requests_are_answered_alike(llava: Llava, swap_space: float) -> None:
    asked = [(f"{text} number {i}", images) for i in range(3) for text, images in ASKED]
    expected = [llava.answer(text, images, NEW_TOKENS) for text, images in asked]
    llm = load(llava, num_gpu_blocks_override=17, max_num_batched_tokens=16, swap_space=swap_space)
    prepare_at_once(llm)
    assert answers(llm, asked) == expected
    assert llm.core.stats().num_preemptions > 0


def test_equal_images_share_pages_and_others_do_not(llava: Llava) -> None:
    llm = load(llava)
    text = f"{IMAGE} is it a cat or is it a dog?"

    def cached(image: Image.Image) -> int:
        prompt = {"prompt": text, "multi_modal_data": {"image": image}}
        (result,) = llm.generate(prompt, PARAMS, use_tqdm=False)  # type: ignore[arg-type]  # lists are invariant
        return result.num_cached_tokens or 0

    assert cached(picture(1)) == 0
    assert cached(picture(2)) == 0
    assert cached(picture(1)) >= 32
    assert llm.generate("x" * 9 + text, PARAMS, use_tqdm=False)[0].num_cached_tokens == 0


def test_image_tokens_without_an_image_share_no_pages_with_those_of_one(llava: Llava) -> None:
    llm = load(llava)
    ids = llava.ids(f"{IMAGE} what is it? ")
    whole, images = expanded(ids, [checked(file_of(picture(1)))], llm.info.images or pytest.fail("it takes images"))
    for name, own in (("with", tuple(images)), ("without", ())):
        llm.core.add_request(EngineRequest(name, whole, PARAMS, images=own))
        while llm.core.has_work():
            for output in llm.core.step():
                assert output.num_cached_tokens == 0


def test_a_cached_image_is_not_embedded_again(llava: Llava, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = load(llava)
    answers(llm, ASKED[1:2])
    monkeypatch.setattr(embedder_of(llm), "_embed", lambda data: pytest.fail("it was embedded"))
    text, images = ASKED[1]
    assert answers(llm, [(text, images)]) == [llava.answer(text, images, NEW_TOKENS)]


def test_several_answers_and_beams_about_an_image(llava: Llava) -> None:
    text, images = ASKED[1]
    llm = load(llava, max_num_batched_tokens=16)
    expected = llava.answer(text, images, NEW_TOKENS)
    sampled = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, n=3)
    (result,) = llm.generate(prompts([(text, images)]), sampled, use_tqdm=False)
    assert [answer.token_ids for answer in result.outputs] == [expected] * 3
    beams = BeamSearchParams(beam_width=3, max_tokens=NEW_TOKENS)
    (found,) = llm.beam_search(prompts([(text, images)]), beams)
    inputs = llava.processor(text=text, images=images, return_tensors="pt")
    best = llava.model.generate(**inputs, max_new_tokens=NEW_TOKENS, num_beams=3, do_sample=False)[0]
    assert found.sequences[0].tokens == best.tolist()


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF"])
def test_files_of_other_formats_are_taken_offline(llava: Llava, kind: str) -> None:
    text, (image,) = ASKED[1]
    data = file_of(image, kind)
    (result,) = load(llava).generate({"prompt": text, "multi_modal_data": {"image": data}}, PARAMS, use_tqdm=False)
    expected = llava.answer(text, [Image.open(io.BytesIO(data)).convert("RGB")], NEW_TOKENS)
    assert result.outputs[0].token_ids == expected


@pytest.mark.parametrize("case", [CASES[0], TILED[0]])
@pytest.mark.parametrize("template", [None, PLAIN], ids=["parts", "plain texts"])
def test_chats_with_images_are_answered_offline(
    llavas: Callable[[str], Llava], case: str, template: str | None
) -> None:
    llava, (one, two) = llavas(case), (picture(1), picture(2, 50, 20))
    url = f"data:image/png;base64,{base64.b64encode(file_of(two)).decode()}"
    chats: list[Any] = [
        [{"role": "user", "content": "hello"}],
        [
            {
                "role": "user",
                "content": [
                    {"type": "image_pil", "image_pil": one},
                    {"type": "image_url", "image_url": {"url": url}},
                    {"type": "text", "text": "which?"},
                ],
            }
        ],
    ]
    ends = ("USER: ", " ASSISTANT:") if template is None else ("user: ", "\n")
    asked: list[Asked] = [
        (f"{ends[0]}hello{ends[1]}", []),
        (f"{ends[0]}{IMAGE}\n{IMAGE}\nwhich?{ends[1]}", [one, two]),
    ]
    results = load(llava).chat(chats, PARAMS, use_tqdm=False, chat_template=template)
    expected = [llava.answer(text, images, NEW_TOKENS) for text, images in asked]
    assert [result.outputs[0].token_ids for result in results] == expected


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}, "no image is fetched"),
        ({"type": "image_url", "image_url": 5}, "image_url is 5: it must be"),
        ({"type": "image_pil", "image_pil": "cat.png"}, "image_pil is a str: it must be a PIL image"),
        ({"type": "video_url", "video_url": {"url": "data:,"}}, "a part has the type 'video_url': give text"),
        ({"type": "image_pil", "image_pil": picture(1, 1, 200)}, "1 x 200 pixels: a side must be"),
    ],
)
def test_what_is_wrong_with_a_chat_offline_is_said(llava: Llava, part: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(llava).chat([{"role": "user", "content": [part]}], PARAMS, use_tqdm=False)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"prompt": "no place", "multi_modal_data": {"image": picture(1)}}, "1 images and the prompt has the image"),
        ({"prompt": IMAGE * 3, "multi_modal_data": {"image": [picture(1)] * 3}}, "3 images and at most 2"),
        ({"prompt": IMAGE, "multi_modal_data": {"image": b"GIF89a"}}, "the image cannot be decoded|no image"),
        ({"prompt": IMAGE, "multi_modal_data": {"audio": b""}}, "multi_modal_data has 'audio'"),
        ({"prompt": IMAGE, "multi_modal_data": {"image": "cat.png"}}, "multi_modal_data has a str"),
    ],
)
def test_what_is_wrong_offline_is_said(llava: Llava, prompt: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(llava, limit_mm_per_prompt="image=2").generate(prompt, PARAMS, use_tqdm=False)


def test_an_image_processor_of_another_size_is_refused(tmp_path: Path) -> None:
    made = make_llava(tmp_path)
    made.processor.image_processor.crop_size = {"height": 16, "width": 16}
    made.processor.save_pretrained(tmp_path)
    with pytest.raises(StartupError, match="makes images of"):
        load(made)


NAMES: dict[str, dict[str, str]] = {
    "as on the hub": {"vision_tower.": "vision_tower.vision_model."},
    "as transformers 4.52 has them": {
        "language_model.model.": "model.language_model.",
        "language_model.lm_head.": "lm_head.",
        "vision_tower.": "model.vision_tower.vision_model.",
        "multi_modal_projector.": "model.multi_modal_projector.",
        "image_newline": "model.image_newline",
    },
    "nested, without the tower's own": {
        "language_model.model.": "model.language_model.",
        "language_model.lm_head.": "lm_head.",
        "vision_tower.": "model.vision_tower.",
        "multi_modal_projector.": "model.multi_modal_projector.",
    },
}


@pytest.mark.parametrize("case", [CASES[0], TILED[0]])
@pytest.mark.parametrize("names", NAMES)
def test_tensors_may_have_other_names(llavas: Callable[[str], Llava], tmp_path: Path, names: str, case: str) -> None:
    llava = llavas(case)
    shutil.copytree(llava.directory, tmp_path, dirs_exist_ok=True)

    def renamed(name: str) -> str:
        ours, theirs = next(((a, b) for a, b in NAMES[names].items() if name.startswith(a)), ("", ""))
        return theirs + name.removeprefix(ours)

    tensors = load_file(llava.directory / "model.safetensors")
    save_file({renamed(name): tensor for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    text, images = ASKED[1]
    expected = llava.answer(text, images, NEW_TOKENS)
    llm = load(Llava(tmp_path, llava.model, llava.processor))
    assert answers(llm, [(text, images)]) == [expected]
    model: Any = llm.core._executor
    held = sum(p.numel() for p in model._model.parameters())
    assert ModelFacts.of_directory(tmp_path).weights.elements == held
