"""Ranks that share a model answer about images as transformers does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from PIL import Image

from quire_engine.core.messages import EngineRequest
from quire_engine.multimodal.image_files import checked
from quire_engine.multimodal.placeholders import expanded
from quire_engine.sampling_params import SamplingParams
from tests.engine.distributed.rank_pool import RankPool
from tests.engine.distributed.test_answers import LAYOUTS, engine
from tests.engine.multimodal.llava_checkpoint import CASES, TILED, file_of, make_llava, picture
from tests.engine.multimodal.phi4_checkpoint import make_phi4
from tests.engine.multimodal.qwen2_checkpoint import make_qwen2

pytestmark = pytest.mark.usefixtures("one_thread")


Asked = list[tuple[str, list[Image.Image]]]


def answers_of(directory: Path, layout: str, asked: Asked, ids_of: Callable[[str], list[int]], **changes: Any) -> Any:
    """What ranks answer to each of `asked`, all of them at once."""
    params = SamplingParams(temperature=0.0, max_tokens=8, logit_bias={96: -100.0})
    answers: dict[str, list[int]] = {}
    with engine(directory, *LAYOUTS[layout], **changes) as core:
        tokens = core.config.images
        assert tokens is not None
        for text, images in asked:
            ids, own = expanded(ids_of(text), [checked(file_of(image)) for image in images], tokens)
            answers[text] = []
            core.add_request(EngineRequest(text, ids, params, images=tuple(own)))
        while core.has_work():
            for output in core.step():
                assert output.error is None
                answers[output.request_id] += output.new_token_ids
    return list(answers.values())


@pytest.mark.parametrize(
    ("layout", "case"),
    [("TP 2", TILED[0]), ("PP 2", CASES[0]), pytest.param("TP 2 x PP 2", TILED[1], marks=pytest.mark.slow)],
)
def test_ranks_answer_alike_about_images(ranks: RankPool, layout: str, case: str, tmp_path: Path) -> None:
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # it has no types
    llava = make_llava(tmp_path, case)
    asked: Asked = [
        ("no image", []),
        ("<image> a?", [picture(1)]),
        ("<image> and <image> b?", [picture(2), picture(3)]),
    ]
    expected = [llava.answer(text, images, 8) for text, images in asked]
    assert answers_of(tmp_path, layout, asked, llava.ids, max_num_batched_tokens=16) == expected


@pytest.mark.parametrize("layout", ["TP 2", "PP 2", pytest.param("TP 2 x PP 2", marks=pytest.mark.slow)])
def test_ranks_share_the_adapter_of_prompts_with_images(ranks: RankPool, layout: str, tmp_path: Path) -> None:
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # it has no types
    phi4 = make_phi4(tmp_path)
    asked: Asked = [("no image", []), ("<|image|> a?", [picture(1)]), ("and <|image|> b?", [picture(2, 70, 70)])]
    expected = [phi4.answer(text, images, 8) for text, images in asked]
    sizes = {"max_model_len": 2048, "num_gpu_blocks_override": 300, "max_num_batched_tokens": 300}
    assert answers_of(tmp_path, layout, asked, phi4.tokenizer.encode, **sizes) == expected


@pytest.mark.parametrize("layout", ["TP 2", "PP 2", pytest.param("TP 2 x PP 2", marks=pytest.mark.slow)])
def test_all_ranks_place_images_by_time_height_and_width(ranks: RankPool, layout: str, tmp_path: Path) -> None:
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # it has no types
    qwen2 = make_qwen2(tmp_path)
    both = [picture(2, 130, 70), picture(3, 20, 50)]
    asked: Asked = [("no image", []), ("<|image_pad|> a?", [picture(1)]), ("<|image_pad|> and <|image_pad|> b?", both)]
    expected = [qwen2.answer(text, images, 8) for text, images in asked]
    assert answers_of(tmp_path, layout, asked, qwen2.tokenizer.encode, max_num_batched_tokens=16) == expected
