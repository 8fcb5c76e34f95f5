"""Figures for people: a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quire_engine.bench.figures import TITLES

_WIDTH = 64
_ROWS = (
    ("Answered", "completed", "d"),
    ("Failed", "failed", "d"),
    ("Duration (s)", "duration", ".2f"),
    ("Tokens of prompts", "total_input_tokens", "d"),
    ("Tokens of answers", "total_output_tokens", "d"),
    ("Requests per second", "request_throughput", ".2f"),
    ("Good requests per second", "request_goodput", ".2f"),
    ("Output tokens per second", "output_throughput", ".2f"),
    ("Most output tokens in a second", "max_output_tokens_per_s", ".2f"),
    ("All tokens per second", "total_token_throughput", ".2f"),
    ("Most requests at once", "max_concurrent_requests", "d"),
)


def table(found: Mapping[str, object], metrics: Sequence[str]) -> str:
    """What `figures.figures` gives, a line each."""
    lines = [_line(title, found[key], form) for title, key, form in _ROWS if found[key] is not None]
    for metric in metrics:
        lines.append(f"{f' {TITLES[metric]} (ms) ':-^{_WIDTH}}")
        names = [key for key in found if key.endswith(f"_{metric}_ms") and not key.startswith("std")]
        lines += [_line(_title(key.split("_")[0]), found[key], ".2f") for key in names]
    return "\n".join(lines)


def _line(title: str, value: object, form: str) -> str:
    return f"{title:<44}{value:>{_WIDTH - 44}{form}}"


def _title(word: str) -> str:
    return f"{word.upper()}" if word[0] == "p" else word.capitalize()
