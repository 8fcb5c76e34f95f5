"""Grammars that cannot be used are refused by name, and hostile ones soon."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from quire_engine.core.grammar import BusyError
from quire_engine.sampling_params import SamplingParams
from quire_engine.structured.compiler import (
    COMPILE_SECONDS,
    MAX_KEPT,
    MAX_WAITING,
    QUEUE_SECONDS,
    Compilation,
    GrammarCompiler,
)
from quire_engine.structured.grammar_text import MAX_NESTING, grammar_text
from quire_engine.structured.grammars import CompiledGrammars, PendingMatch
from quire_engine.structured.vocabulary import byte_vocabulary
from quire_engine.structured_outputs import MAX_CHARACTERS, StructuredOutputsParams
from quire_engine.text.token_bytes import TokenBytes
from tests.engine.structured.conftest import byte_level_tokenizer

if TYPE_CHECKING:
    from llguidance import LLTokenizer


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(byte_vocabulary)


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth - 1):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ({}, "structured_outputs sets none of them: it needs exactly one of json, regex, choice, grammar, json_object"),
        ({"regex": "a", "choice": ["b"]}, "structured_outputs sets regex and choice: it needs exactly one of"),
        (
            {"structural_tag": {"a": {1}}},
            "structured_outputs.structural_tag is not JSON: .* set is not JSON serializable",
        ),
        ({"choice": []}, "structured_outputs.choice must be a list of strings"),
        ({"choice": ["a", ""]}, "structured_outputs.choice must be a list of strings, each with at least one"),
        ({"choice": ["a"] * 5000}, "structured_outputs.choice has 5000 strings: it may have 4096"),
        ({"regex": "a" * (MAX_CHARACTERS + 1)}, "structured_outputs.regex has 131073 characters: it may have 131072"),
        ({"grammar": 5}, "structured_outputs.grammar is of type int: it must be a string"),
        ({"json": {"const": {1}}}, "structured_outputs.json is not JSON: .* set is not JSON serializable"),
    ],
)
def test_what_asks_for_no_form_or_for_two_is_refused_at_once(wanted: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{reason}"):
        StructuredOutputsParams(**wanted)


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ({"json": "{"}, "structured_outputs.json is not JSON: Expecting property name"),
        ({"json": "[]"}, "structured_outputs.json is \\[\\]: write an object"),
        ({"json": nested(MAX_NESTING + 1)}, "structured_outputs.json is nested 101 deep: it may be 100"),
        ({"json": {"type": "strin"}}, "structured_outputs.json cannot be used: Invalid type: strin"),
        ({"json": {"not": {}}}, 'structured_outputs.json cannot be used: Unimplemented keys: \\["not"\\]'),
        ({"json": {"type": "array", "uniqueItems": True}}, "structured_outputs.json .* Unimplemented keys"),
        ({"json": {"x-guidance": {"lenient": True}, "not": {}}}, "structured_outputs.json .* Unimplemented keys"),
        ({"json": {"type": "integer", "minimum": 2, "maximum": 1}}, "structured_outputs.json .* Unsatisfiable"),
        ({"json": False}, "structured_outputs.json is false: write an object, as false allows nothing"),
        ({"json": {"$ref": "#"}}, "structured_outputs.json cannot be used: no answer matches it"),
        ({"json": {"$ref": "#/$defs/none"}}, "structured_outputs.json cannot be used: "),
        ({"json": {"$ref": "http://127.0.0.1:1/schema"}}, "structured_outputs.json cannot be used: "),
        ({"regex": "("}, "structured_outputs.regex cannot be used: unclosed group"),
        ({"regex": "(?=a)b"}, "structured_outputs.regex cannot be used: look-around"),
        ({"regex": ""}, "structured_outputs.regex cannot be used: no answer but the empty one matches it"),
        ({"grammar": "root ::= x"}, "structured_outputs.grammar cannot be used: Rule 'x' not found"),
        ({"grammar": "root ::= root"}, "structured_outputs.grammar cannot be used: no answer matches it"),
        ({"grammar": "root ::="}, "structured_outputs.grammar cannot be used: "),
        ({"grammar": "anything"}, "structured_outputs.grammar cannot be used: "),
        ({"json_object": True, "whitespace_pattern": "("}, "structured_outputs.json_object cannot be used: "),
    ],
)
def test_a_grammar_that_cannot_be_used_is_refused_by_its_field(
    compiler: GrammarCompiler, wanted: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=f"^{reason}"):
        compiler.submit(StructuredOutputsParams(**wanted)).future.result(60)


def chain(length: int) -> dict[str, Any]:
    """Definitions that each refer to the next: a reader that follows them by recursion goes as deep."""
    defs: dict[str, Any] = {str(i): {"items": {"$ref": f"#/$defs/{i + 1}"}} for i in range(length)}
    return {"$defs": {**defs, str(length): {"type": "null"}}, "$ref": "#/$defs/0"}


def doubling(count: int) -> str:
    rules = [f"r{i} ::= r{i + 1} r{i + 1}" for i in range(count)]
    return "\n".join(["root ::= r0", *rules, f'r{count} ::= "a"'])


HOSTILE: dict[str, dict[str, Any]] = {
    "a long chain of references": {"json": chain(2900)},
    "references that double": {"json": {"$defs": {"a": {"allOf": [{"$ref": "#"}] * 2}}, "$ref": "#/$defs/a"}},
    "alternatives that multiply": {
        "json": {
            "allOf": [
                {"anyOf": [{"properties": {f"{c}{i}": {"type": "string"}}, "required": [f"{c}{i}"]} for c in "ab"]}
                for i in range(20)
            ]
        }
    },
    "a multiple among many": {"json": {"type": "integer", "minimum": 0, "maximum": 10**15, "multipleOf": 9999}},
    "a long string": {"json": {"type": "string", "minLength": 10**9}},
    "many items": {"json": {"type": "array", "minItems": 10**9, "items": {"type": "integer"}}},
    "many properties": {"json": {"properties": {f"p{i}": {"type": "string"} for i in range(2500)}}},
    "a long enumeration": {"json": {"enum": [f"{i}-{'x' * 20}" for i in range(4500)]}},
    "a repeat of repeats": {"regex": "((a{1,1000}){1,1000}){1,1000}"},
    "a huge repeat": {"regex": "a{1000000000}"},
    "states that multiply": {"regex": "(a|b)*a(a|b){400}"},
    "what stalls a backtracking matcher": {"regex": "(a+)+(a+)+(a|aa)+$"},
    "deep groups": {"regex": "(" * 5000 + "a" + ")" * 5000},
    "long alternatives": {"regex": "|".join(f"{i}x{i * 7919 % 10007}" for i in range(12000))},
    "deep groups in a grammar": {"grammar": "root ::= " + "(" * 5000 + '"a"' + ")" * 5000},
    "deep groups in Lark": {"grammar": "start: " + "(" * 50000 + '"a"' + ")" * 50000},
    "rules that double": {"grammar": doubling(60)},
    "too many rules": {"grammar": doubling(600)},
    "an ambiguous rule": {"grammar": 'start: e\ne: e e | e e e | e e e e | "a"'},
    "nothing often": {"grammar": "start: a*\na: b*\nb: c*\nc: d*\nd:"},
    "a counted rule": {"grammar": 'start: ("a" x){1000000}\nx: "b"'},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_grammar_is_compiled_or_refused_within_bounds_and_the_next_one_works(
    compiler: GrammarCompiler, name: str
) -> None:
    hostile = StructuredOutputsParams(**HOSTILE[name])
    future = compiler.submit(hostile).future
    after = compiler.submit(StructuredOutputsParams(choice=[name])).future
    error = future.exception(60)
    if error is not None:
        assert isinstance(error, ValueError)
        assert str(error).startswith(f"structured_outputs.{hostile.kind} ")
        assert len(str(error)) < 400
    assert after.result(60).matcher.is_accepting() is False


def test_the_same_constraint_is_compiled_once_and_the_oldest_are_forgotten() -> None:
    loads = []
    compiler = GrammarCompiler(lambda: loads.append(1) or byte_vocabulary())  # type: ignore[func-returns-value]  # None goes on to the vocabulary

    def submit(i: int, **options: Any) -> Compilation:
        compilation = compiler.submit(StructuredOutputsParams(json={"const": i}, **options))
        compilation.future.result(60)
        compilation.leave()
        return compilation

    first = submit(0)
    assert submit(0) is first
    assert submit(0, disable_any_whitespace=True) is not first
    for i in range(1, MAX_KEPT - 1):
        submit(i)
    assert submit(0) is first  # used again, and so no longer the oldest
    submit(MAX_KEPT)
    assert submit(0) is first
    for i in range(MAX_KEPT):
        submit(-1 - i)
    assert submit(0) is not first
    assert loads == [1]


def test_a_schema_may_be_given_as_text_or_as_an_object() -> None:
    schema = {"type": "object", "properties": {"ü": {"const": 1}}}
    text = json.dumps(schema, ensure_ascii=False)
    assert StructuredOutputsParams(json=schema).key == StructuredOutputsParams(json=text).key


class Slow:
    """A compiler whose first grammar takes until `go` is set, on a clock that stands still by itself."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go, self.now = threading.Event(), threading.Event(), 0.0
        clock = SimpleNamespace(monotonic=lambda: self.now, thread_time=time.thread_time)
        for module in ("compiler", "grammars", "stop_strings"):
            monkeypatch.setattr(f"quire_engine.structured.{module}.time", clock)
        self.grammars = CompiledGrammars(self._load, 257, (256,))
        self.ahead = self.submit("ahead")
        assert self.begun.wait(60)

    def submit(self, answer: str) -> PendingMatch:
        return self.grammars.compile(SamplingParams(structured_outputs=StructuredOutputsParams(choice=[answer])))

    def _load(self) -> LLTokenizer:
        self.begun.set()
        assert self.go.wait(60)
        return byte_vocabulary()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    made = Slow(monkeypatch)
    yield made
    made.go.set()


def test_the_time_of_a_grammar_counts_from_its_turn(slow: Slow) -> None:
    slow.now = QUEUE_SECONDS - 1
    behind = slow.submit("behind")
    slow.now = COMPILE_SECONDS + 1
    assert slow.ahead.done()
    with pytest.raises(ValueError, match=r"structured_outputs.choice was not compiled within 20 s: simplify it"):
        slow.ahead.start()
    slow.now = 2 * QUEUE_SECONDS - 2
    assert not behind.done(), "its turn may still come"
    slow.go.set()
    behind.wait(60)
    slow.now *= 2
    assert behind.start().finished is False


def test_one_whose_turn_does_not_come_is_told_to_come_again(slow: Slow) -> None:
    behind = slow.submit("behind")
    slow.now = QUEUE_SECONDS + 1
    assert behind.done()
    with pytest.raises(BusyError, match="other grammars took 20 s to compile: try again"):
        behind.start()


def test_what_nobody_waits_for_any_more_is_not_compiled(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    text = "quire_engine.structured.compiler.grammar_text"
    monkeypatch.setattr(text, lambda w: compiled.append(w.choice) or grammar_text(w))
    first, second = slow.submit("shared"), slow.submit("shared")
    gone = slow.submit("gone")
    first.leave()
    gone.leave()
    again = slow.submit("gone and come again")
    again.leave()
    again = slow.submit("gone and come again")
    slow.go.set()
    for pending in (slow.ahead, second, again):
        pending.wait(60)
        assert pending.start().finished is False
    assert compiled == [["ahead"], ["shared"], ["gone and come again"]]


def test_grammars_that_nobody_waits_for_take_no_place_in_the_queue(slow: Slow) -> None:
    for i in range(MAX_WAITING + 1):
        slow.submit(f"gone {i}").leave()
    held = [slow.submit(str(i)) for i in range(MAX_WAITING - 1)]
    with pytest.raises(BusyError):
        slow.submit("one more")
    for pending in held:
        pending.leave()


def stopped() -> SamplingParams:
    return SamplingParams(n=2, use_beam_search=True, stop=["a"])


def test_stop_strings_whose_turn_does_not_come_are_told_to_come_again(slow: Slow) -> None:
    slow.grammars._load_token_bytes = lambda: TokenBytes(byte_level_tokenizer())
    behind = slow.grammars.compile(stopped())
    assert not behind.done()
    slow.now = QUEUE_SECONDS + 1
    assert behind.done()
    with pytest.raises(BusyError, match="was not there within 20 s: try again"):
        behind.start()
    behind = slow.grammars.compile(stopped())
    slow.go.set()
    behind.wait(60)
    assert behind.start().finished is False


def test_a_load_that_fails_is_no_fault_of_the_request_and_tried_again() -> None:
    broken = True

    def load() -> TokenBytes:
        if broken:
            raise ValueError("half a file")
        return TokenBytes(byte_level_tokenizer())

    grammars = CompiledGrammars(byte_vocabulary, 257, (256,), load)
    pending = grammars.compile(stopped())
    pending.wait(60)
    with pytest.raises(RuntimeError, match="half a file"):
        pending.start()
    broken = False
    pending = grammars.compile(stopped())
    pending.wait(60)
    assert pending.start().finished is False
