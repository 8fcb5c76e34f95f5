"""What generation_config.json says holds for requests that leave it out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quire_engine.loading.checkpoint import Checkpoint
from quire_engine.loading.errors import CheckpointError
from quire_engine.loading.generation_config import eos_token_ids, generation_config, sampling_defaults


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 6], "temperature": 0.6}))
    return Checkpoint(tmp_path, {"eos_token_id": 3})


def test_the_tokens_that_end_answers_come_from_it_first(checkpoint: Checkpoint) -> None:
    assert eos_token_ids(generation_config(checkpoint, "auto"), checkpoint.config) == (5, 6)
    assert eos_token_ids({}, checkpoint.config) == (3,)
    assert eos_token_ids({}, {}) == ()


def test_another_directory_or_none_may_take_its_place(checkpoint: Checkpoint, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "generation_config.json").write_text('{"top_k": 20}')
    assert sampling_defaults(generation_config(checkpoint, "auto")) == {"temperature": 0.6}
    assert sampling_defaults(generation_config(checkpoint, str(other))) == {"top_k": 20}
    assert generation_config(checkpoint, "vllm") == {}
    (checkpoint.directory / "generation_config.json").unlink()
    assert generation_config(checkpoint, "auto") == {}


def test_what_a_request_may_leave_out_is_taken_and_the_rest_is_let_pass() -> None:
    written = {
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.8,
        "top_k": 20,
        "min_p": None,
        "repetition_penalty": 1.05,
        "max_new_tokens": 2048,
        "num_beams": 4,
    }
    assert sampling_defaults(written) == {
        "temperature": 0.7,
        "top_p": 0.8,
        "top_k": 20,
        "repetition_penalty": 1.05,
        "max_tokens": 2048,
    }


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ({"temperature": "hot"}, "temperature is 'hot': it must be a number"),
        ({"top_k": 1.5}, "top_k is 1.5: it must be a number"),
        ({"top_p": 1.5}, "top_p is 1.5: it must be above 0 and at most 1; --generation-config vllm does without"),
    ],
)
def test_what_is_wrong_in_it_is_named(written: dict[str, object], says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        sampling_defaults(written)


def test_a_directory_without_the_file_is_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="must be auto, vllm, or a directory with"):
        generation_config(checkpoint, str(tmp_path / "nowhere"))
