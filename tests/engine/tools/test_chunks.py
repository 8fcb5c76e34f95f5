"""However an answer's text is cut, the same comes of it; nothing raises; and each character costs the same."""

from __future__ import annotations

import json
import sys
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire_engine.tools.calls import CallParser
from quire_engine.tools.events import ArgumentsDelta, CallEnded, CallStarted, Content, Event, ToolParser, joined
from quire_engine.tools.forced import REQUIRED, NamedCall
from quire_engine.tools.formats import FORMATS

OFFERED = {"f": {"properties": {"a": {"type": "string"}}}, "get_time": None}
PARSERS = [*{id(format): name for name, format in FORMATS.items()}.values(), "required", "named"]
FRAGMENTS = sorted(
    {marker for format in FORMATS.values() for marker in format.markers}
    | {'{"name": "f", ', '"arguments": ', '"parameters": ', '{"a": [1, "x\\u00e9"], "b": {}}', "}", "{", "[", "]", '"'}
    | {
        "f",
        "f(",
        "(",
        ")",
        "a=",
        "b='it\\'s'",
        ", ",
        "True",
        "-1.5e3",
        "\\",
        "[ARGS]",
        "[CALL_ID]",
        "\n",
        " ",
        ": ",
        "é",
    }
    | {"<function=f>", "<function=", "<parameter=a>", "<parameter=b>", "</parameter>", "</function>", "</", "<", ">"}
    | {"<tool", "_call>", "<|python", "functool", "null", "1", '"x"'}
    | {"<arg_key>", "a</arg_key>", "b</arg_key>", "<arg_value>", "</arg_value>", "</arg", "</tool_call>"}
    | {"<｜tool▁call▁begin｜>", "function", "<｜tool▁sep｜>", "```", "json", "<｜tool▁call▁end｜>", "<｜tool▁call"}
    | {"<|tool_call_begin|>", "functions.f:0", "<|tool_call_argument_begin|>", "<|tool_call_end|>", "<|tool_call"}
)


def parser_of(format: str) -> ToolParser:
    if format == "named":
        return NamedCall("f")
    return CallParser(REQUIRED if format == "required" else FORMATS[format], OFFERED)


def events_of(format: str, pieces: list[str]) -> list[Event]:
    parser = parser_of(format)
    return joined([event for piece in pieces for event in parser.feed(piece)] + parser.finish())


TEXTS = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.characters()), max_size=30).map("".join)


@pytest.mark.parametrize("format", PARSERS)
@settings(max_examples=60)
@given(data=st.data())
def test_any_cuts_give_the_same_events(format: str, data: st.DataObject) -> None:
    text = data.draw(TEXTS)
    whole = events_of(format, [text])
    assert events_of(format, list(text)) == whole
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
    assert events_of(format, [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]) == whole


@pytest.mark.parametrize("format", PARSERS)
@settings(max_examples=40)
@given(text=TEXTS)
def test_calls_begin_and_end_in_turn(format: str, text: str) -> None:
    in_call = False
    for event in events_of(format, list(text)):
        assert isinstance(event, ArgumentsDelta | CallEnded) == in_call
        in_call = in_call != isinstance(event, CallStarted | CallEnded)
        assert not isinstance(event, Content | ArgumentsDelta) or event.text
    assert not in_call


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
ARGUMENTS = st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), JSON, max_size=3)


@given(calls=st.lists(ARGUMENTS, min_size=1, max_size=3), indent=st.sampled_from([None, 1]))
def test_any_json_arguments_arrive_as_they_were_written(calls: list[dict[str, Any]], indent: int | None) -> None:
    written = [json.dumps(arguments, indent=indent, ensure_ascii=False) for arguments in calls]
    texts = {
        "hermes": "".join(f'<tool_call>\n{{"name": "f", "arguments": {w}}}\n</tool_call>\n' for w in written),
        "llama3_json": "; ".join(f'{{"name": "f", "parameters": {w}}}' for w in written),
        "mistral": "".join(f"[TOOL_CALLS]f{w}" for w in written),
        "deepseek_v3": "<｜tool▁calls▁begin｜>"
        + "\n".join(
            f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{w}\n```<｜tool▁call▁end｜>" for w in written
        )
        + "<｜tool▁calls▁end｜>",
        "deepseek_v31": "<｜tool▁calls▁begin｜>"
        + "".join(f"<｜tool▁call▁begin｜>f<｜tool▁sep｜>{w}<｜tool▁call▁end｜>" for w in written)
        + "<｜tool▁calls▁end｜>",
        "kimi_k2": "<|tool_calls_section_begin|>"
        + "".join(
            f"<|tool_call_begin|>functions.f:{i}<|tool_call_argument_begin|>{w}<|tool_call_end|>"
            for i, w in enumerate(written)
        )
        + "<|tool_calls_section_end|>",
        "required": "[" + ", ".join(f'{{"name": "f", "parameters": {w}}}' for w in written) + "]",
    }
    for format, text in texts.items():
        found = [e.text for e in events_of(format, list(text)) if not isinstance(e, CallStarted | CallEnded)]
        assert found == written, format


@given(calls=st.lists(ARGUMENTS, min_size=1, max_size=3))
def test_any_python_literals_arrive_as_json(calls: list[dict[str, Any]]) -> None:
    inner = [", ".join(f"{name}={value!r}" for name, value in arguments.items()) for arguments in calls]
    events = events_of("pythonic", list("[" + ", ".join(f"f({one})" for one in inner) + "]"))
    found = [e.text for e in events if not isinstance(e, CallStarted | CallEnded)]
    assert [json.loads(text) for text in found] == calls


@pytest.mark.parametrize("format", PARSERS)
@pytest.mark.parametrize(
    "unit",
    [
        *("<", " ", "[", '{"a":', '<tool_call>{"name": "f", ', "[TOOL_CALLS]", "f(a=[", "\\"),
        *("</parameter", "<function=f>", "``", "<arg_key>a"),
    ],
)
def test_each_character_costs_the_same(format: str, unit: str) -> None:
    prefix = {
        "qwen3_xml": "<tool_call><function=f><parameter=a>",
        "glm47": "<tool_call>f<arg_key>a</arg_key><arg_value>",
        "deepseek_v31": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{}",
        "pythonic": "[f(a='",
        "hermes": '<tool_call>{"name": "f", "arguments": {"a": "',
        "named": '{"a": "',
    }
    for begin in ("", prefix.get(format, "")):
        small, large = (work(format, begin + unit * (size // len(unit))) for size in (400, 1600))
        assert large < 5 * small


def work(format: str, text: str) -> int:
    """How many functions are called, Python's and C's, and how many characters they are given to look at."""
    parser, count = parser_of(format), 0

    def on_event(frame: FrameType, event: str, _: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(on_event)
    try:
        for character in text:
            parser.feed(character)
            count += len(getattr(parser, "_held", ""))
        parser.finish()
    finally:
        sys.setprofile(None)
    return count
