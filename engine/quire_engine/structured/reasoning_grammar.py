"""Grammars of answers that may begin with reasoning."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quire_engine.structured.lark import quoted
from quire_engine.structured_outputs import AfterReasoning

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_TEXT = "/(?s:.*)/"
_SPACE = r"/[\x20\x0A\x0D\x09]{1,8}/"


def with_reasoning(answer: str, tags: AfterReasoning, vocabulary: LLTokenizer, *, begun: bool) -> str:
    """The grammar of `answer` with reasoning before it: inside of that at the beginning, or with a start tag that may
    come. Tags that are special tokens of `vocabulary` are these, and no text."""
    grammars = json.loads(answer)["grammars"] if answer.startswith("{") else [{"lark_grammar": answer}]
    start, end = _special(tags.start, vocabulary), _special(tags.end, vocabulary)
    written = quoted(tags.start) if start is None else f"<[{start}]>"
    rules = [
        "start: thought SPACE? @answer" if begun else f"start: @answer | {written} thought SPACE? @answer",
        f"SPACE: {_SPACE}",
        # Models may spell a special token all the same, and readers take that for the tag.
        "thought: spelled" if end is None else f"thought: spelled | TEXT? <[{end}]>\nTEXT: {_TEXT}",
        f"spelled[suffix={quoted(tags.end)}]: {_TEXT}",
    ]
    whole = {"lark_grammar": "\n".join(rules)}
    return json.dumps({"grammars": [whole, {**grammars[0], "name": "answer"}, *grammars[1:]]})


def _special(tag: str, vocabulary: LLTokenizer) -> int | None:
    """The special token that a tag is; None for one that is text."""
    ids = vocabulary.tokenize_str(tag, parse_special=True)
    return ids[0] if len(ids) == 1 and vocabulary.is_special_token(ids[0]) else None


@dataclass(frozen=True, slots=True)
class CompiledReasoning:
    """How reasoning ends, and what comes then."""

    tags: AfterReasoning
    matcher: LLMatcher  # inside of the reasoning, at its beginning: to be copied
    vocabulary: LLTokenizer
