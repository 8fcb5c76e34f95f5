"""Whatever the model would rather say, a constrained answer has the form that was asked for."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest

from quire_engine import LLM, SamplingParams, StructuredOutputsParams
from quire_engine.request_output import CompletionOutput

pytestmark = pytest.mark.usefixtures("one_thread")

OBJECT = {"type": "object", "additionalProperties": False}
NODE = {**OBJECT, "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}, "required": ["next"]}
SCHEMAS: dict[str, Any] = {
    "an object": {
        **OBJECT,
        "properties": {
            "name": {"type": "string", "maxLength": 8},
            "age": {"type": "integer", "minimum": 0, "maximum": 130},
            "tags": {"type": "array", "items": {"enum": ["a", "b", 3, None]}, "maxItems": 3},
        },
        "required": ["name", "age"],
    },
    "all optional": {**OBJECT, "properties": {n: {"type": "boolean"} for n in "abcd"}},
    "a tuple": {"type": "array", "prefixItems": [{"type": "null"}, {"type": "boolean"}], "items": False, "minItems": 2},
    "a number in a range": {"type": "number", "exclusiveMinimum": -1.5, "maximum": 2.25},
    "a multiple": {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 1000},
    "a pattern": {"type": "string", "pattern": "^[a-f]{2,4}(-[0-9]+)?$", "maxLength": 12},
    "a date": {"type": "string", "format": "date"},
    "a constant": {"const": {"deep": [1, "two", {"three": None}]}},
    "any of": {"anyOf": [{"type": "integer"}, {**OBJECT, "properties": {"x": {"const": 1}}, "required": ["x"]}]},
    "disjoint one of": {
        "oneOf": [
            {**OBJECT, "properties": {"kind": {"const": k}, k: {"type": "boolean"}}, "required": ["kind", k]}
            for k in ("cat", "dog")
        ]
    },
    "all of": {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 50}]},
    "recursive": {"$defs": {"node": NODE}, "$ref": "#/$defs/node"},
    "a map": {"type": "object", "additionalProperties": {"type": "boolean"}, "maxProperties": 2},
    "text beyond ASCII": {"enum": ["naïve", "日本", "🙂", 'quote " and \\', "line\nbreak"]},
}
REGEXES = [
    r"\d{3}-[a-z]{1,5}",
    r"(yes|no)( maybe)?",
    r"^[A-Z][a-z]{0,6}\.$",
    r"(ab*c){1,3}",
    r"[^\x00-\x7f]{2}",
    r"a?b?c?d",
]
CHOICES = [["yes", "no"], ["a", "ab", "abc"], ['say "so"', "back\\slash", "new\nline", " ", "🙂", "/x/", "$[a-z]*"]]
GRAMMARS = {
    'root ::= "(" root ")" | "x"': r"\(*x\)*",
    'root ::= item ("," item)*\nitem ::= [0-9]+ | "n"': r"(\d+|n)(,(\d+|n))*",
    'start: word+\nword: /[ab]{1,2}/ "."': r"([ab]{1,2}\.)+",
}


def answers(llm: LLM, wanted: StructuredOutputsParams, **params: Any) -> list[CompletionOutput]:
    """Greedy once and drawn with some seeds, all in one batch."""
    given = {"max_tokens": 200, "structured_outputs": wanted, **params}
    every = [SamplingParams(temperature=0.0, **given)]
    every += [SamplingParams(temperature=t, seed=s, **given) for s, t in enumerate((0.5, 1.0, 1.0, 3.0))]
    return [o.outputs[0] for o in llm.generate(["form"] * len(every), every, use_tqdm=False)]


def finished(llm: LLM, wanted: StructuredOutputsParams, **params: Any) -> list[str]:
    """The texts of the answers that ended by themselves, at least one."""
    texts = [a.text for a in answers(llm, wanted, **params) if a.finish_reason == "stop"]
    assert texts
    llm.core.check_integrity()
    return texts


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_finished_answer_is_valid_json_of_its_schema(llm: LLM, name: str) -> None:
    schema = SCHEMAS[name]
    for text in finished(llm, StructuredOutputsParams(json=schema)):
        jsonschema.validate(json.loads(text), schema, format_checker=jsonschema.FormatChecker())


@pytest.mark.parametrize("regex", REGEXES)
def test_a_finished_answer_matches_its_regex_whole(llm: LLM, regex: str) -> None:
    assert all(re.fullmatch(regex, text, re.ASCII) for text in finished(llm, StructuredOutputsParams(regex=regex)))


@pytest.mark.parametrize("choice", CHOICES)
def test_a_finished_answer_is_one_of_its_choices(llm: LLM, choice: list[str]) -> None:
    assert set(finished(llm, StructuredOutputsParams(choice=choice))) <= set(choice)


@pytest.mark.parametrize("grammar", GRAMMARS)
def test_a_finished_answer_follows_its_grammar_in_gbnf_or_lark(llm: LLM, grammar: str) -> None:
    wanted = StructuredOutputsParams(grammar=grammar)
    assert all(re.fullmatch(GRAMMARS[grammar], text) for text in finished(llm, wanted))


def test_any_json_object_is_one(llm: LLM) -> None:
    for text in finished(llm, StructuredOutputsParams(json_object=True)):
        assert isinstance(json.loads(text), dict)


def test_whitespace_can_be_left_out_or_chosen(llm: LLM) -> None:
    schema = SCHEMAS["an object"]
    for text in finished(llm, StructuredOutputsParams(json=schema, disable_any_whitespace=True)):
        assert text == json.dumps(json.loads(text), separators=(",", ":"), ensure_ascii=False)
    for text in finished(llm, StructuredOutputsParams(json=schema, whitespace_pattern="\t")):
        jsonschema.validate(json.loads(text), schema)
        assert not re.search(r"[ \n\r]", re.sub(r'"[^"]*"', "", text))


def test_an_answer_that_is_cut_is_the_beginning_of_a_whole_one(llm: LLM) -> None:
    wanted = StructuredOutputsParams(json=SCHEMAS["an object"])
    whole = answers(llm, wanted)
    for count in (1, 2, 5, 9):
        for short, long in zip(answers(llm, wanted, max_tokens=count), whole, strict=True):
            assert short.token_ids == long.token_ids[:count]
            if len(long.token_ids) > count:
                assert short.finish_reason == "length"
                assert long.text.startswith(short.text.rstrip("\N{REPLACEMENT CHARACTER}"))  # half a character
