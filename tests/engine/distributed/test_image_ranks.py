"""Ranks that share a model answer about images as transformers does."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from quire_engine.core.messages import EngineRequest
from quire_engine.multimodal.image_files import checked
from quire_engine.multimodal.placeholders import expanded
from quire_engine.sampling_params import SamplingParams
from tests.engine.distributed.rank_pool import RankPool
from tests.engine.distributed.test_answers import LAYOUTS, engine
from tests.engine.multimodal.llava_checkpoint import IMAGE, file_of, make_llava, picture

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("layout", ["TP 2", "PP 2", pytest.param("TP 2 x PP 2", marks=pytest.mark.slow)])
def test_ranks_answer_alike_about_images(ranks: RankPool, layout: str, tmp_path: Path) -> None:
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # it has no types
    llava = make_llava(tmp_path)
    asked = [("no image", []), (f"{IMAGE} a?", [picture(1)]), (f"{IMAGE} and {IMAGE} b?", [picture(2), picture(3)])]
    params = SamplingParams(temperature=0.0, max_tokens=8)
    answers: dict[str, list[int]] = {}
    with engine(tmp_path, *LAYOUTS[layout], max_num_batched_tokens=16) as core:
        tokens = core.config.images
        assert tokens is not None
        for text, images in asked:
            ids, own = expanded(llava.ids(text), [checked(file_of(image)) for image in images], tokens)
            answers[text] = []
            core.add_request(EngineRequest(text, ids, params, images=tuple(own)))
        while core.has_work():
            for output in core.step():
                assert output.error is None
                answers[output.request_id] += output.new_token_ids
    assert list(answers.values()) == [llava.answer(text, images, 8) for text, images in asked]
