"""What the benchmarks ask: lengths that are kept, orders that a seed gives, files that are refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quire_engine.bench.samples import RandomLengths, custom_samples, random_samples, sharegpt_samples
from quire_engine.text.tokenizer import load_tokenizer

WORDS = "the class of an object is what its methods are found by "


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> Any:
    return load_tokenizer(str(tiny_model_dir))


def turns(*texts: str) -> dict[str, object]:
    return {"conversations": [{"from": "human", "value": text} for text in texts]}


def sharegpt(folder: Path, *entries: object) -> Path:
    file = folder / "sharegpt.json"
    file.write_text(json.dumps(entries))
    return file


def test_random_prompts_have_the_lengths_that_were_asked_for(tokenizer: Any) -> None:
    lengths = RandomLengths(input_len=50, output_len=20, range_ratio=0.2, prefix_len=8)
    samples = random_samples(tokenizer, 40, lengths, seed=1)
    counted = [len(tokenizer.encode(s.prompt, add_special_tokens=False)) for s in samples]
    assert counted == [s.prompt_len for s in samples]
    # text that merges anew can miss the length by a token or two
    assert all(48 - 2 <= n <= 68 + 2 for n in counted)
    assert {s.output_len for s in samples} <= set(range(16, 25))
    assert len({s.output_len for s in samples}) > 1


def test_random_prompts_are_the_seeds(tokenizer: Any) -> None:
    lengths = RandomLengths(input_len=20, output_len=5)
    assert random_samples(tokenizer, 5, lengths, seed=1) == random_samples(tokenizer, 5, lengths, seed=1)
    assert random_samples(tokenizer, 5, lengths, seed=1) != random_samples(tokenizer, 5, lengths, seed=2)


def test_a_shared_prefix_is_shared(tokenizer: Any) -> None:
    lengths = RandomLengths(input_len=5, output_len=5, prefix_len=30)
    ids = [tokenizer.encode(s.prompt, add_special_tokens=False)[:25] for s in random_samples(tokenizer, 4, lengths, 0)]
    assert all(one == ids[0] for one in ids)


def test_conversations_are_asked_by_their_first_question_and_answered_at_the_length_of_theirs(
    tokenizer: Any, tmp_path: Path
) -> None:
    short, long = "ok", WORDS * 400
    file = sharegpt(
        tmp_path,
        turns(WORDS, WORDS * 2),
        turns(WORDS),
        turns(short, WORDS),
        turns(WORDS, short),
        turns(long, WORDS),
        {},
    )
    (sample,) = sharegpt_samples(tokenizer, file, 1, 0, None)
    assert sample.prompt == WORDS
    assert sample.output_len == len(tokenizer.encode(WORDS * 2, add_special_tokens=False))
    # only one fits: it is asked as often as requests are wanted
    assert sharegpt_samples(tokenizer, file, 3, 0, None) == [sample] * 3
    assert {s.output_len for s in sharegpt_samples(tokenizer, file, 2, 0, 7)} == {7}


def test_the_order_of_conversations_is_the_seeds(tokenizer: Any, tmp_path: Path) -> None:
    file = sharegpt(tmp_path, *(turns(f"{WORDS} {number}", WORDS) for number in range(20)))
    orders = [[s.prompt for s in sharegpt_samples(tokenizer, file, 10, seed, None)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nothing", "is no JSON"),
        ('{"a": 1}', "holds no list"),
        ("[]", "has no conversation"),
        ("[1]", "is not of ShareGPT's form"),
        ('[{"conversations": [1, 2]}]', "is not of ShareGPT's form"),
    ],
)
def test_what_is_wrong_with_a_file_of_conversations_is_said(
    tokenizer: Any, tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "file"
    file.write_text(text)
    with pytest.raises(ValueError, match=said):
        sharegpt_samples(tokenizer, file, 1, 0, None)


def test_prompts_of_ones_own_keep_their_order(tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "one", "output_tokens": 3}\n\n{"prompt": "two"}\n')
    found = [(s.prompt, s.output_len) for s in custom_samples(tokenizer, file, 3, None)]
    assert found == [("one", 3), ("two", 256), ("one", 3)]
    file.write_text('{"prompt": "one"}\n{"text": "two"}\n')
    with pytest.raises(ValueError, match="line 2 of"):
        custom_samples(tokenizer, file, 3, None)
