"""From what a request asks for to the grammar that llguidance compiles."""

from __future__ import annotations

import json
from dataclasses import replace

from quire_engine.structured.lark import quoted
from quire_engine.structured.structural_tag import tag_grammar
from quire_engine.structured_outputs import StructuredOutputsParams

# llguidance reads JSON by recursion and gives up a little deeper.
MAX_NESTING = 100
# The translation of GBNF takes time with the square of its rules.
MAX_RULES = 500
# \d, \w and \s are of ASCII, as they are in JSON Schema: few who write them expect digits of 70 scripts.
_ASCII_CLASSES = "dws"
# Enough to indent any answer; without an end, a model that is lost writes whitespace until its tokens run out.
_WHITESPACE = r"[\x20\x0A\x0D\x09]{1,40}"


def grammar_text(wanted: StructuredOutputsParams) -> str:
    """The grammar as llguidance's JSON. Raises `ValueError` that names the field and what is wrong with it."""
    from llguidance import LLMatcher, grammar_from, regex_to_lark

    if wanted.json_object:
        return _of_schema({"type": "object"}, wanted)
    if wanted.json is not None:
        return _of_schema(_read_schema(str(wanted.json)), wanted)
    if wanted.calls is not None:
        return _of_calls(wanted.calls, wanted)
    if wanted.regex is not None:
        return LLMatcher.grammar_from_lark(f"start: /{regex_to_lark(wanted.regex, _ASCII_CLASSES)}/")
    if wanted.choice is not None:
        # One terminal: as alternatives of a rule, each of them would be a lexeme of its own.
        choices = " | ".join(quoted(c) for c in dict.fromkeys(wanted.choice))
        return LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {choices}")
    if wanted.structural_tag is not None:
        return tag_grammar(str(wanted.structural_tag), lambda form: grammar_text(_with_whitespace_of(wanted, form)))
    assert wanted.grammar is not None
    rules = wanted.grammar.count("::=")
    if rules > MAX_RULES:
        raise ValueError(f"structured_outputs.grammar has {rules} rules: it may have {MAX_RULES}")
    try:
        return grammar_from("grammar", wanted.grammar)
    except (ValueError, RecursionError) as error:
        reason = str(error).removeprefix("Failed to convert the grammar from GBNF to Lark: ")
        raise ValueError(f"structured_outputs.grammar cannot be used: {reason}") from error


def _of_calls(calls: list[tuple[str, str]], wanted: StructuredOutputsParams) -> str:
    """A list of objects, each with a grammar of its own for the parameters: schemas may refer to their own parts."""
    rules = [
        'start: "[" call "]"' if wanted.one_call else 'start: "[" call (", " call)* "]"',
        "call: " + " | ".join(f"call_{i}" for i in range(len(calls))),
    ]
    grammars = []
    for i, (name, schema) in enumerate(calls):
        head = f'{{"name": {json.dumps(name, ensure_ascii=False)}, "parameters": '
        rules.append(f"call_{i}: {quoted(head)} @parameters_{i} {quoted('}')}")
        try:
            (own,) = json.loads(_of_schema(_read_schema(schema), wanted))["grammars"]
        except ValueError as error:
            raise ValueError(f"structured_outputs.calls.{i}, {name}, cannot be used: {error}") from error
        grammars.append({**own, "name": f"parameters_{i}"})
    return json.dumps({"grammars": [{"lark_grammar": "\n".join(rules)}, *grammars]})


def _with_whitespace_of(wanted: StructuredOutputsParams, form: StructuredOutputsParams) -> StructuredOutputsParams:
    return replace(
        form, disable_any_whitespace=wanted.disable_any_whitespace, whitespace_pattern=wanted.whitespace_pattern
    )


def _of_schema(schema: object, wanted: StructuredOutputsParams) -> str:
    from llguidance import LLMatcher

    # All are given, as a schema may bring options of its own: what a keyword says is enforced, or it is refused.
    return LLMatcher.grammar_from_json_schema(
        json.dumps(schema),
        overrides={
            "whitespace_flexible": not wanted.disable_any_whitespace,
            "whitespace_pattern": None if wanted.disable_any_whitespace else wanted.whitespace_pattern or _WHITESPACE,
            "lenient": False,
            "coerce_one_of": False,
        },
    )


def _read_schema(text: str) -> object:
    try:
        schema = json.loads(text)
        nesting = _nesting(schema)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"structured_outputs.json is not JSON: {error}") from error
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        raise ValueError(f"structured_outputs.json is {text[:50]}: write an object, as false allows nothing")
    if nesting > MAX_NESTING:
        raise ValueError(f"structured_outputs.json is nested {nesting} deep: it may be {MAX_NESTING}")
    return schema


def _nesting(value: object) -> int:
    """How many objects and lists are inside each other, at most."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return depth
