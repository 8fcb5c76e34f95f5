"""Ranks share adapters as they share the linears that these change."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.distributed.rank_pool import RankPool
from tests.engine.lora.adapters import Adapted, answer, make, start

pytestmark = pytest.mark.usefixtures("one_thread")

LAYOUTS = {"TP 2": (2, 1), "PP 2": (1, 2), "TP 2 x PP 2": (2, 2)}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    return make(tmp_path_factory.mktemp("llama"), "LlamaForCausalLM: grouped heads")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranks_answer_as_peft_does(ranks: RankPool, llama: Adapted, layout: str) -> None:
    tensor, pipeline = LAYOUTS[layout]
    core = start(llama, tensor_parallel_size=tensor, pipeline_parallel_size=pipeline)
    try:
        assert answer(core, [None, "a", "b"]) == llama.answers
    finally:
        core.close()


def test_ranks_share_modules_that_hold_several_of_ours(ranks: RankPool, tmp_path: Path) -> None:
    adapted = make(tmp_path, "GPT2")
    core = start(adapted, tensor_parallel_size=2)
    try:
        assert answer(core, [None, "a", "b"]) == adapted.answers
    finally:
        core.close()
