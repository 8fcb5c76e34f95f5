"""What each format's texts mean: as models write them, cut off, and wrong."""

from __future__ import annotations

import json

import pytest

from quire_engine.tools.calls import CallParser
from quire_engine.tools.events import ArgumentsDelta, CallEnded, CallStarted, Content, Event, joined
from quire_engine.tools.forced import REQUIRED, NamedCall
from quire_engine.tools.formats import FORMATS

WEATHER = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
OFFERED = {"get_weather": WEATHER, "get_time": None, "math.add": {}}
OSLO = '{"city": "Oslo"}'


def parsed(format: str, text: str) -> list[Event]:
    parser = CallParser(REQUIRED if format == "required" else FORMATS[format], OFFERED)
    return joined([*parser.feed(text), *parser.finish()])


def call(name: str, arguments: str) -> list[Event]:
    return [CallStarted(name), ArgumentsDelta(arguments), CallEnded()]


@pytest.mark.parametrize(
    ("format", "text", "expected"),
    [
        (
            "hermes",
            f'<tool_call>\n{{"name": "get_weather", "arguments": {OSLO}}}\n</tool_call>',
            call("get_weather", OSLO),
        ),
        (
            "hermes",
            f'Let me look.\n\n<tool_call>\n{{"name": "get_weather", "arguments": {OSLO}}}\n</tool_call>\n'
            '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>\n',
            [Content("Let me look."), *call("get_weather", OSLO), *call("get_time", "{}")],
        ),
        (
            "hermes",
            f'<tool_call>{{"arguments": {OSLO}, "name": "get_weather"}}</tool_call> Done.',
            [*call("get_weather", OSLO), Content("Done.")],
        ),
        ("hermes", '<tool_call>{"name": "get_time"}</tool_call>', call("get_time", "{}")),
        ("hermes", '<tool_call>{"name": "get_time", "arguments": null}</tool_call>', call("get_time", "{}")),
        (
            "hermes",
            '<tool_call>{"name": "get_weather", "arguments": "{\\"city\\": \\"Oslo\\"}"}</tool_call>',
            call("get_weather", OSLO),
        ),
        ("hermes", '<tool_call>{"name": "not_offered", "arguments": {}}</tool_call>', call("not_offered", "{}")),
        (
            "hermes",
            f'<tool_call>\n{{"id": 7, "name": "get_weather", "arguments": {OSLO}, "why": ["it", "rains"]}}',
            call("get_weather", OSLO),
        ),
        (
            "llama3_json",
            f'{{"name": "get_weather", "parameters": {OSLO}}}',
            call("get_weather", OSLO),
        ),
        (
            "llama3_json",
            f'<|python_tag|>{{"type": "function", "name": "get_weather", "parameters": {OSLO}}}; '
            '{"name": "get_time", "parameters": {}}',
            [*call("get_weather", OSLO), *call("get_time", "{}")],
        ),
        (
            "mistral",
            f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {OSLO}}}, {{"name": "get_time", "arguments": {{}}}}]',
            [*call("get_weather", OSLO), *call("get_time", "{}")],
        ),
        (
            "mistral",
            f"One moment.[TOOL_CALLS]get_weather[ARGS]{OSLO}[TOOL_CALLS]get_time[CALL_ID]abcDEF123[ARGS]{{}}",
            [Content("One moment."), *call("get_weather", OSLO), *call("get_time", "{}")],
        ),
        ("mistral", f"[TOOL_CALLS]get_weather{OSLO}", call("get_weather", OSLO)),
        (
            "pythonic",
            "[get_weather(city='Oslo', days=3), math.add(a=-1.5, b=[1, (2, 3)], exact=True, of=None), get_time()]",
            [
                *call("get_weather", '{"city": "Oslo", "days": 3}'),
                *call("math.add", '{"a": -1.5, "b": [1, [2, 3]], "exact": true, "of": null}'),
                *call("get_time", "{}"),
            ],
        ),
        (
            "pythonic",
            '<|python_start|>[get_weather(city="Os\\tlo \\u00e5 \\"x\\" it\'s", place={"a": {"b": 1}})]<|python_end|>',
            call("get_weather", '{"city": "Os\\tlo å \\"x\\" it\'s", "place": {"a": {"b": 1}}}'),
        ),
        (
            "olmo3",
            '<function_calls>get_weather(city="Oslo")\nget_time()</function_calls>',
            [*call("get_weather", OSLO), *call("get_time", "{}")],
        ),
        (
            "qwen3_coder",
            'Well.\n<tool_call>\n<function=get_weather>\n<parameter=city>\nOs"lo\n</parameter>\n'
            "<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=get_time>\n"
            "</function>\n</tool_call>",
            [Content("Well."), *call("get_weather", '{"city": "Os\\"lo", "days": 2}'), *call("get_time", "{}")],
        ),
        (
            "qwen3_coder",
            "Well.\n<function=get_time></function>\n<function=get_weather><parameter=city>Oslo</parameter></function>"
            "\n</tool_call> Done.",
            [Content("Well."), *call("get_time", "{}"), *call("get_weather", OSLO), Content("Done.")],
        ),
        (
            "qwen3_coder",
            '<tool_call><function=math.add><parameter=a>True</parameter><parameter=b>{"c": [1]}</parameter>'
            "<parameter=c>two\nlines</parameter><parameter=d>NaN</parameter></function></tool_call>",
            call("math.add", '{"a": true, "b": {"c": [1]}, "c": "two\\nlines", "d": "NaN"}'),
        ),
        (
            "glm45",
            'Well.\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Os"lo\n</arg_value>\n'
            "<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>\n<tool_call>get_time\n</tool_call>",
            [Content("Well."), *call("get_weather", '{"city": "Os\\"lo\\n", "days": 2}'), *call("get_time", "{}")],
        ),
        (
            "glm47",
            "<tool_call>math.add<arg_key>a</arg_key><arg_value>[1, 2]</arg_value><arg_key>b</arg_key>"
            "<arg_value>two</arg_value></tool_call> Done.",
            [*call("math.add", '{"a": [1, 2], "b": "two"}'), Content("Done.")],
        ),
        (
            "deepseek_v3",
            f"Well.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{OSLO}\n```"
            "<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_time\n```json\n{}\n```"
            "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            [Content("Well."), *call("get_weather", OSLO), *call("get_time", "{}")],
        ),
        (
            "deepseek_v31",
            f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{OSLO}<｜tool▁call▁end｜>"
            "<｜tool▁call▁begin｜>math.add<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>\nDone.",
            [*call("get_weather", OSLO), *call("math.add", "{}"), Content("Done.")],
        ),
        (
            "kimi_k2",
            "Well.<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
            f"{OSLO}<|tool_call_end|>\n<|tool_call_begin|>functions.math.add:1<|tool_call_argument_begin|>{{}}"
            "<|tool_call_end|><|tool_calls_section_end|>",
            [Content("Well."), *call("get_weather", OSLO), *call("math.add", "{}")],
        ),
        ("granite", f'<|tool_call|>[{{"name": "get_weather", "arguments": {OSLO}}}]', call("get_weather", OSLO)),
        (
            "jamba",
            f'<tool_calls>[\n{{"name": "get_weather", "arguments": {OSLO}}}\n]</tool_calls>',
            call("get_weather", OSLO),
        ),
        ("phi4_mini_json", f'functools[{{"name": "get_weather", "arguments": {OSLO}}}]', call("get_weather", OSLO)),
        (
            "internlm",
            f'Yes.<|action_start|><|plugin|>\n{{"name": "get_weather", "parameters": {OSLO}}}<|action_end|>\n',
            [Content("Yes."), *call("get_weather", OSLO)],
        ),
        (
            "required",
            f'[{{"name": "get_weather", "parameters": {OSLO}}}, {{"name": "get_time", "parameters": {{}}}}]',
            [*call("get_weather", OSLO), *call("get_time", "{}")],
        ),
    ],
)
def test_calls_are_found_as_models_write_them(format: str, text: str, expected: list[Event]) -> None:
    assert parsed(format, text) == expected


@pytest.mark.parametrize(
    ("format", "text"),
    [
        ("hermes", "Hello, world.\n"),
        ("hermes", "   "),
        ("hermes", "a < b, <tool_ and <tool_call"),
        ("hermes", "</tool_call> alone"),
        ("hermes", "<tool_call>"),
        ("hermes", "<tool_call>\nget_weather(Oslo)\n</tool_call>"),
        ("hermes", '<tool_call>{"name": "get_weather"'),
        ("hermes", '<tool_call>{"name": 5, "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "", "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": "Oslo"}</tool_call>'),
        ("hermes", '<tool_call>{"arguments": {"a": 1}}</tool_call>'),
        ("hermes", '<tool_call>{"arguments": {"a": oops}, "name": "f"}</tool_call>'),
        ("llama3_json", '{"name": "Ada", "parameters": {}}'),
        ("llama3_json", '{"name": "Ada", "age": 36}'),
        ("llama3_json", '{"weather": "rain"}'),
        ("llama3_json", 'I say {"name": "get_time", "parameters": {}}'),
        ("llama3_json", "<|python_tag|>print(1)"),
        ("mistral", "[TOOL_CALLS]"),
        ("mistral", "[TOOL_CALLS]what is this"),
        ("mistral", "[TOOL_CALLS]get time[ARGS]{}"),
        ("mistral", "[1, 2] [TOOL_"),
        ("pythonic", "[1, 2, 3]"),
        ("pythonic", "[a link](https://example.org)"),
        ("pythonic", "[unknown(a=1)]"),
        ("pythonic", "[get_time]"),
        ("pythonic", "Use [get_time()] for it."),
        ("required", "[{"),
        ("qwen3_coder", "<tool_call>\n<function=get_weather"),
        ("glm45", "<tool_call>get_weather"),
        ("glm45", "<tool_call>what is <b>this</b>"),
        ("glm45", "<tool_call>\n<arg_key>city</arg_key>"),
        ("deepseek_v3", "<｜tool▁calls▁begin｜>"),
        ("deepseek_v3", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get weather\n```json\n{}"),
        ("deepseek_v31", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_time"),
        ("deepseek_v31", "<｜tool▁calls▁begin｜><b>{}"),
        ("kimi_k2", "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_time:0{}"),
        ("qwen3_coder", "<tool_call>\n<func>x</func></tool_call>"),
        ("qwen3_coder", "<tool_call>\n<function=></function></tool_call>"),
        ("qwen3_coder", "Well, <function=></function>"),
        ("qwen3_coder", "<function=get_weather"),
        ("qwen3_coder", "<function=get_weather>"),
        ("qwen3_coder", "Write <function=get_weather> and then its parameters."),
        ("qwen3_coder", "<function=nothing_offered><parameter=city>Oslo</parameter></function>"),
        ("qwen3_coder", "<tool_call><function=<function=<function="),
    ],
)
def test_what_is_no_call_is_content_to_the_letter(format: str, text: str) -> None:
    assert parsed(format, text) == [Content(text)]


@pytest.mark.parametrize(
    ("format", "text", "arguments", "rest"),
    [
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": [1, "tw', '{"a": [1, "tw', ""),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": oops}}', '{"a": ', "oops}}"),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 01}}', '{"a": 0', "1}}"),
        ("mistral", "[TOOL_CALLS]f{'a': 1}", "{", "'a': 1}"),
        ("qwen3_coder", "<tool_call><function=f><parameter=a>1</parameter>so", '{"a": 1', "so"),
        ("qwen3_coder", "<tool_call><function=f><param=a>", "{", "<param=a>"),
        ("qwen3_coder", "<tool_call><function=get_weather><parameter=city>Os\nl</par", '{"city": "Os\\nl</par', ""),
        ("glm45", "<tool_call>get_time<arg_key>a</arg_key>so", "{", "<arg_key>a</arg_key>so"),
        ("glm45", "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Os</arg", '{"city": "Os</arg', ""),
        (
            "deepseek_v3",
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{}``so<｜tool▁calls▁end｜>",
            "{}",
            "``so",
        ),
        (
            "kimi_k2",
            "<|tool_calls_section_begin|><|tool_call_begin|>f:0<|tool_call_argument_begin|>{'a'}",
            "{",
            "'a'}",
        ),
        ("pythonic", "[get_time(a=1, 2)]", '{"a": 1', "2)]"),
        ("pythonic", "[get_time(a=1, {})]", '{"a": 1', "{})]"),
        ("pythonic", "[get_time(a=later)]", '{"a": ', "later)]"),
        ("pythonic", "[get_time(a=[1, 'x", '{"a": [1, "x', ""),
    ],
)
def test_a_call_with_a_fault_ends_there_and_the_rest_is_content(
    format: str, text: str, arguments: str, rest: str
) -> None:
    started, *events = parsed(format, text)
    assert isinstance(started, CallStarted)
    assert events == [ArgumentsDelta(arguments), CallEnded(), *([Content(rest)] if rest else [])]


def test_control_characters_in_strings_are_escaped() -> None:
    _, told, _ = parsed("hermes", '<tool_call>{"name": "f", "arguments": {"text": "one\ntwo\x01"}}</tool_call>')
    assert isinstance(told, ArgumentsDelta)
    assert json.loads(told.text) == {"text": "one\ntwo\x01"}


def test_arguments_come_as_they_are_written() -> None:
    parser = CallParser(FORMATS["hermes"], OFFERED)
    assert parser.feed('<tool_call>{"name": "f", "argu') == []
    assert parser.feed('ments": {"a') == [CallStarted("f"), ArgumentsDelta('{"a')]
    assert parser.feed('": 1') == [ArgumentsDelta('": 1')]
    assert parser.feed("}") == [ArgumentsDelta("}"), CallEnded()]


def test_text_is_held_back_only_while_it_may_be_a_marker() -> None:
    parser = CallParser(FORMATS["hermes"], OFFERED)
    assert parser.feed("a <tool") == [Content("a")]
    assert parser.feed("s> b") == [Content(" <tools> b")]


def test_a_named_call_is_the_answer_s_json() -> None:
    parser = NamedCall("f")
    events = [*parser.feed(' {"a"'), *parser.feed(": 1}"), *parser.feed("\n"), *parser.finish()]
    assert events == [CallStarted("f"), ArgumentsDelta('{"a"'), ArgumentsDelta(": 1}"), CallEnded()]
    nothing = NamedCall("f")
    assert [*nothing.feed(" "), *nothing.finish()] == []
