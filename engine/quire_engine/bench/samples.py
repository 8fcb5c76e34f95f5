"""What is asked: random text of given lengths, conversations of ShareGPT, or prompts of one's own."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

LEAST_TOKENS, MOST_PROMPT_TOKENS, MOST_TOKENS = 4, 1024, 2048
"""Bounds of a conversation of ShareGPT that is asked, as the field's benchmarks have had them since vLLM's first."""

_ATTEMPTS = 10
T = TypeVar("T")


@dataclass(frozen=True)
class Sample:
    """One request: its text, how many tokens that is, and how many the answer may have at most."""

    prompt: str
    prompt_len: int
    output_len: int


@dataclass(frozen=True, kw_only=True)
class RandomLengths:
    """Lengths in tokens. Each is drawn from its `range_ratio` around the mean; the first `prefix_len` are shared."""

    input_len: int = 1024
    output_len: int = 128
    range_ratio: float = 0.0
    prefix_len: int = 0

    def __post_init__(self) -> None:
        if min(self.input_len, self.output_len) < 1 or self.prefix_len < 0:
            raise ValueError("lengths must be at least 1, and --random-prefix-len at least 0")
        if not 0 <= self.range_ratio < 1:
            raise ValueError(f"--random-range-ratio is {self.range_ratio}: it must be at least 0 and below 1")

    def drawn(self, mean: int, chance: random.Random) -> int:
        """One length."""
        spread = int(mean * self.range_ratio)
        return max(1, chance.randint(mean - spread, mean + spread))


def random_samples(tokenizer: Any, number: int, lengths: RandomLengths, seed: int) -> list[Sample]:
    """Texts of random tokens. The same seed gives the same texts with the same tokenizer."""
    chance = random.Random(seed)
    special = set(tokenizer.all_special_ids)
    ordinary = [i for i in range(tokenizer.vocab_size) if i not in special]
    prefix = chance.choices(ordinary, k=lengths.prefix_len)
    return [_random_sample(tokenizer, ordinary, prefix, lengths, chance) for _ in range(number)]


def _random_sample(
    tokenizer: Any, ordinary: Sequence[int], prefix: list[int], lengths: RandomLengths, chance: random.Random
) -> Sample:
    wanted = len(prefix) + lengths.drawn(lengths.input_len, chance)
    ids = prefix + chance.choices(ordinary, k=wanted - len(prefix))
    text, number = "", 0
    # random tokens are seldom the tokens of their own text: what merged is made up for, until it comes out even
    for _ in range(_ATTEMPTS):
        text = tokenizer.decode(ids)
        ids = tokenizer.encode(text, add_special_tokens=False)
        number = len(ids)
        if number == wanted:
            break
        ids = ids[:wanted] + chance.choices(ordinary, k=max(0, wanted - number))
    return Sample(text, number, lengths.drawn(lengths.output_len, chance))


def sharegpt_samples(tokenizer: Any, file: Path, number: int, seed: int, output_len: int | None) -> list[Sample]:
    """First questions of the conversations in a JSON file of ShareGPT's form, in an order that the seed gives.

    An answer may be as long as the one in the file, or `output_len`. Raises `ValueError` for a file that is none.
    """
    try:
        entries = [_first_two(entry) for entry in _json_of(file)]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f'{file} is not of ShareGPT\'s form: [{{"conversations": [{{"value": "..."}}]}}]') from error
    found = [pair for pair in entries if pair is not None]
    random.Random(seed).shuffle(found)

    def fitting() -> Iterator[Sample]:
        for question, answer in found:
            asked = len(tokenizer.encode(question))
            answered = output_len or len(tokenizer.encode(answer, add_special_tokens=False))
            short = asked < LEAST_TOKENS or (output_len is None and answered < LEAST_TOKENS)
            if not short and asked <= MOST_PROMPT_TOKENS and asked + answered <= MOST_TOKENS:
                yield Sample(question, asked, answered)

    return _repeated(fitting, number, f"{file} has no conversation of fitting length")


def custom_samples(tokenizer: Any, file: Path, number: int, output_len: int | None) -> list[Sample]:
    """Prompts of a JSON Lines file, `{"prompt": "...", "output_tokens": 64}` a line, in its order."""

    def lines() -> Iterator[Sample]:
        for count, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                prompt, length = str(entry["prompt"]), int(output_len or entry.get("output_tokens", 256))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f'line {count} of {file} is not of the form {{"prompt": "..."}}') from error
            yield Sample(prompt, len(tokenizer.encode(prompt)), length)

    return _repeated(lines, number, f"{file} has no prompts")


def _json_of(file: Path) -> list[Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}") from error
    if not isinstance(found, list):
        raise ValueError(f"{file} holds no list of conversations")
    return found


def _first_two(entry: Any) -> tuple[str, str] | None:
    turns = entry.get("conversations") or entry.get("conversation") or []
    return (str(turns[0]["value"]), str(turns[1]["value"])) if len(turns) >= 2 else None


def _repeated(source: Callable[[], Iterator[T]], number: int, otherwise: str) -> list[T]:
    """The first `number`, from the beginning again where there are fewer."""
    taken: list[T] = []
    for one in source():
        taken.append(one)
        if len(taken) == number:
            return taken
    if not taken:
        raise ValueError(otherwise)
    return [taken[i % len(taken)] for i in range(number)]
