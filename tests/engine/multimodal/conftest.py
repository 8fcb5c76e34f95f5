"""Small LLaVAs, each made once for a module."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import transformers

from tests.engine.multimodal.llava_checkpoint import Llava, make_llava


@pytest.fixture(scope="module")
def llavas(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Callable[[str], Llava]:
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # it has no types
    made: dict[str, Llava] = {}

    def get(case: str) -> Llava:
        if case not in made:
            made[case] = make_llava(tmp_path_factory.mktemp("llava"), case)
        return made[case]

    return get
