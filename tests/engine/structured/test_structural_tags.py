"""Free text with tags in it, in the two ways that vLLM takes them."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from llguidance import LLMatcher

from quire_engine import LLM, SamplingParams
from quire_engine.structured.grammar_text import grammar_text
from quire_engine.structured.vocabulary import byte_vocabulary
from quire_engine.structured_outputs import StructuredOutputsParams

VOCABULARY = byte_vocabulary()
INTEGER = {"type": "json_schema", "json_schema": {"type": "integer"}}
WORD = {"type": "regex", "pattern": "[a-z]+"}
TEXT = {"type": "any_text"}
OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
CALLS = {
    "structures": [
        {"begin": "<function=foo>", "schema": OBJECT, "end": "</function>"},
        {"begin": "<function=bar>", "schema": {"type": "string"}, "end": "</function>"},
    ],
    "triggers": ["<function="],
}


def tag(begin: str, content: dict[str, Any], end: str | list[str]) -> dict[str, Any]:
    return {"type": "tag", "begin": begin, "content": content, "end": end}


def triggered(**options: bool) -> dict[str, Any]:
    return {"type": "triggered_tags", "triggers": ["<t"], "tags": [tag("<t>", INTEGER, "</t>")], **options}


def takes(wanted: dict[str, Any], text: str) -> bool:
    """Whether `text` is a whole answer."""
    matcher = LLMatcher(VOCABULARY, grammar_text(StructuredOutputsParams(structural_tag=wanted)), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    tokens = [*text.encode()]
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("", True),
        ("plain text\nwith < and <func", True),
        ('before <function=foo>{"a": 1}</function> after', True),
        ('<function=bar>"b"</function><function=foo>{"a":1}</function>', True),
        ('<function=foo>{"b": 1}</function>', False),
        ('<function=foo>{"a": 1}', False),
        ("<function=baz>", False),
    ],
)
def test_a_trigger_opens_one_of_its_structures_and_all_else_is_free(text: str, taken: bool) -> None:
    assert takes(CALLS, text) is taken


@pytest.mark.parametrize(
    ("wanted", "taken", "refused"),
    [
        ({"type": "const_string", "value": 'a"\n'}, ['a"\n'], ["a"]),
        (INTEGER, ["12"], ["x"]),
        (WORD, ["ab"], ["", "A"]),
        ({"type": "grammar", "grammar": 'root ::= "x" | "y" root'}, ["yyx"], ["y"]),
        (TEXT, ["", "a\nb"], []),
        ({"type": "or", "elements": [INTEGER, WORD]}, ["1", "a"], ["a1"]),
        ({"type": "sequence", "elements": [WORD, INTEGER, TEXT]}, ["a1", "a1 and more"], ["1a"]),
        (tag("<a>", TEXT, "</a>"), ["<a></a>", "<a>b < c</a>"], ["<a>", "<a></a>b"]),
        (tag("<a>", INTEGER, ["</a>", "!"]), ["<a>1!", "<a>1</a>"], ["<a>1"]),
        (tag("<a>", INTEGER, ""), ["<a>1"], ["<a>"]),
        (triggered(), ["", "a", "a<t>1</t>b<t>2</t>"], ["<t>a", "<t"]),
        (triggered(at_least_one=True), ["<t>1</t>", "a<t>1</t>b"], ["", "a"]),
        (triggered(stop_after_first=True), ["a", "a<t>1</t>"], ["a<t>1</t>b"]),
        (triggered(stop_after_first=True, at_least_one=True), ["a<t>1</t>"], ["a", "a<t>1</t>b"]),
        (tag("<a>", triggered(), "</a>"), ["<a>b<t>1</t>c</a>", "<a></a>"], ["<a><t>b</a>", "<a></a>b"]),
        (
            {"type": "tags_with_separator", "tags": [tag("<a>", WORD, ">"), tag("<b>", TEXT, ">")], "separator": ", "},
            ["", "<a>x>", "<a>x>, <b>Y>"],
            ["<a>x><b>Y>", "<a>x>, "],
        ),
        (
            {"type": "sequence", "elements": [TEXT, tag("<a>", INTEGER, "</a>"), triggered()]},
            ["well <a>1</a>", "<a>1</a> so <t>2</t>"],
            ["well", "well <a>x", "<a>1</a><t>x"],
        ),
        ({"type": "sequence", "elements": [TEXT, {"type": "const_string", "value": "="}, INTEGER]}, ["a=1"], ["a"]),
        (
            {"type": "sequence", "elements": [tag("<think>", TEXT, "</think>"), triggered(at_least_one=True)]},
            ["<think>so</think><t>1</t>"],
            ["<t>1</t>", "<think>so</think>"],
        ),
    ],
)
def test_formats_take_what_they_say_and_nothing_else(
    wanted: dict[str, Any], taken: list[str], refused: list[str]
) -> None:
    assert [text for text in taken if not takes({"type": "structural_tag", "format": wanted}, text)] == []
    assert [text for text in refused if takes({"format": wanted}, text)] == []


def test_whitespace_is_chosen_for_tags_as_for_schemas() -> None:
    wanted = StructuredOutputsParams(structural_tag=json.dumps(CALLS), disable_any_whitespace=True)
    matcher = LLMatcher(VOCABULARY, grammar_text(wanted), log_level=0)
    text = '<function=foo>{"a": 1'
    assert matcher.try_consume_tokens([*text.encode()]) == text.index(" ")


def deep(depth: int) -> dict[str, Any]:
    made: dict[str, Any] = INTEGER
    for _ in range(depth):
        made = {"type": "sequence", "elements": [made]}
    return made


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ("{", " is not JSON"),
        ({}, " must be an object with either format, or structures and triggers"),
        ({**CALLS, "format": INTEGER}, " must be an object with either format, or structures and triggers"),
        ({**CALLS, "triggers": []}, ".triggers must be a list of at least one"),
        ({**CALLS, "triggers": ["<tool="]}, r".structures.0.begin is '<function=foo>': it must begin with one of"),
        ({**CALLS, "triggers": ["<function=", "<f"]}, ".triggers.0 holds another trigger"),
        ({**CALLS, "triggers": ["<function=", "x"]}, ".triggers holds 'x', with which no tag begins"),
        ({"structures": [{"begin": "a"}], "triggers": ["a"]}, ".structures.0 must be an object with begin, schema and"),
        (
            {"structures": [{"begin": "a", "schema": False, "end": "b"}], "triggers": ["a"]},
            ".structures.0.schema is false: write an object",
        ),
        ({"format": {}}, ".format.type is not supported: it must be one of const_string, json_schema"),
        ({"format": {"type": "qwen_xml_parameter"}}, ".format.type is 'qwen_xml_parameter', which is not supported"),
        ({"format": {"type": "json_schema"}}, ".format.json_schema is missing"),
        ({"format": {"type": "sequence", "elements": [TEXT, INTEGER]}}, ".format.elements.0 is free text whose end"),
        ({"format": tag("a", TEXT, "")}, ".format.content is free text whose end"),
        ({"format": tag("", INTEGER, "b")}, ".format.begin must be a string of at least one character"),
        ({"format": {**tag("a", INTEGER, "b"), "end": 5}}, ".format.end must be a string, or a list"),
        ({"format": deep(40)}, r".* is nested 32 deep"),
    ],
)
def test_a_tag_that_cannot_be_used_is_refused_by_the_part_that_is_wrong(wanted: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^structured_outputs.structural_tag{reason}"):
        grammar_text(StructuredOutputsParams(structural_tag=wanted))


def test_a_models_answers_have_their_tags_where_a_trigger_comes(llm: LLM) -> None:
    wanted = {"structures": [{"begin": "=x", "schema": {"type": "integer"}, "end": ";"}], "triggers": ["="]}
    params = SamplingParams(
        max_tokens=60,
        temperature=1.5,
        ignore_eos=True,
        logit_bias=dict.fromkeys(llm.get_tokenizer().encode("="), 4.0),
        structured_outputs=StructuredOutputsParams(structural_tag=wanted),
        seed=0,
        n=8,
    )
    (result,) = llm.generate("abc", params, use_tqdm=False)
    texts = [answer.text for answer in result.outputs]
    assert any("=" in text for text in texts)
    for text in texts:
        assert re.fullmatch(r"([^=]|=x-?(0|[1-9]\d*);)*(=(x(-?\d*)?)?)?", text), text
