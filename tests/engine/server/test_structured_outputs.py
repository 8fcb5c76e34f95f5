"""Answers of a form over HTTP: OpenAI's response_format, vLLM's fields, and what is refused."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import jsonschema
import pytest
from pydantic import BaseModel, Field

from tests.engine.server.conftest import Server, StartServer

MESSAGES: Any = [{"role": "user", "content": "Hello!"}]
CHAT = {"model": "tiny", "messages": MESSAGES, "max_tokens": 300, "seed": 1}
COMPLETION = {"model": "tiny", "prompt": "Hello", "max_tokens": 300, "seed": 1}
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 999}, "ok": {"type": "boolean"}},
    "required": ["n", "ok"],
    "additionalProperties": False,
}


FORMS: tuple[Any, ...] = ({"guided_regex": "[ab]{3}"}, {"structured_outputs": {"choice": ["aab", "bba"]}})


class Circle(BaseModel):
    kind: Literal["circle"]
    radius: Annotated[int, Field(ge=0, le=99)]


class Square(BaseModel):
    kind: Literal["square"]
    side: Annotated[int, Field(ge=0, le=99)]


class Drawing(BaseModel):
    title: Literal["A", "B"]
    shapes: Annotated[list[Circle | Square], Field(max_length=2)]
    background: Circle | None


def content(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    assert choice["finish_reason"] == "stop", choice
    return str(choice["message"]["content"] if "message" in choice else choice["text"])


def test_the_engine_loads_no_tokenizer_for_its_first_form(start_server: StartServer) -> None:
    """It would take seconds, with every other stream beside it."""
    server = start_server()
    answers = [httpx.post(f"{server.url}/v1/completions", json=COMPLETION | form) for form in FORMS]
    assert all(re.fullmatch("[ab]{3}", content(answer)) for answer in answers)
    libraries = Path(f"/proc/{server.engine_pid()}/maps").read_text()
    assert "llguidance" in libraries
    assert "/tokenizers/" not in libraries


def test_the_openai_client_parses_an_answer_into_a_pydantic_model(server: Server) -> None:
    for seed in range(3):
        answer = server.client().chat.completions.parse(
            model="tiny", messages=MESSAGES, response_format=Drawing, seed=seed, max_tokens=1000
        )
        assert isinstance(answer.choices[0].message.parsed, Drawing)


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}}},
        {"structured_outputs": {"json": SCHEMA}},
        {"structured_outputs": {"json": json.dumps(SCHEMA), "disable_any_whitespace": True}},
        {"guided_json": SCHEMA},
        {"guided_json": json.dumps(SCHEMA), "guided_decoding_backend": "outlines", "guided_whitespace_pattern": " "},
    ],
)
def test_a_schema_holds_however_it_is_sent(server: Server, fields: dict[str, Any]) -> None:
    for path, body in (("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION)):
        text = content(httpx.post(f"{server.url}{path}", json={**body, **fields}, timeout=60))
        jsonschema.validate(json.loads(text), SCHEMA)


TAG = {"type": "tag", "begin": "<n>", "content": {"type": "regex", "pattern": "[0-9]"}, "end": "</n>"}


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"structured_outputs": {"regex": r"\d{2}-[xyz]"}}, r"[0-9]{2}-[xyz]"),
        ({"guided_regex": r"\d{2}-[xyz]"}, r"[0-9]{2}-[xyz]"),
        ({"structured_outputs": {"choice": ["left", "right"]}}, "left|right"),
        ({"guided_choice": ["left", "right"]}, "left|right"),
        ({"structured_outputs": {"grammar": 'root ::= "a" ("b" | "c")'}}, "a[bc]"),
        ({"guided_grammar": 'start: "a" ("b" | "c")'}, "a[bc]"),
        ({"structured_outputs": {"structural_tag": json.dumps({"format": TAG})}}, "<n>[0-9]</n>"),
        ({"response_format": {"type": "structural_tag", "format": TAG}}, "<n>[0-9]</n>"),
        ({"response_format": {"type": "json_object"}, "guided_json": None, "temperature": 0}, r"\{.*\}"),
    ],
)
def test_other_forms_hold_streamed_or_not(server: Server, fields: dict[str, Any], pattern: str) -> None:
    for path, body in (("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION)):
        answer = httpx.post(f"{server.url}{path}", json={**body, **fields}, timeout=60)
        assert re.fullmatch(pattern, content(answer), re.DOTALL)
        streamed = httpx.post(f"{server.url}{path}", json={**body, **fields, "stream": True}, timeout=60).text
        chunks = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
        choices = [chunk["choices"][0] for chunk in chunks]
        text = "".join(c["text"] if "text" in c else c["delta"].get("content") or "" for c in choices)
        assert text == content(answer)


def test_text_is_a_response_format_without_a_form(server: Server) -> None:
    plain = httpx.post(f"{server.url}/v1/chat/completions", json={**CHAT, "max_tokens": 5}).json()
    body = {**CHAT, "max_tokens": 5, "response_format": {"type": "text"}}
    text = httpx.post(f"{server.url}/v1/chat/completions", json=body).json()
    assert text["choices"][0]["message"] == plain["choices"][0]["message"]


def of_schema(schema: object) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        (of_schema({"type": "strin"}), "response_format.json_schema", "Invalid type: strin"),
        (of_schema({"not": {}}), "response_format.json_schema", 'Unimplemented keys: ["not"]'),
        (of_schema({"minimum": 2, "maximum": 1, "type": "integer"}), "response_format.json_schema", "Unsatisfiable"),
        (of_schema({"enum": ["x" * 140_000]}), "response_format.json_schema", "it may have 131072"),
        (of_schema({"const": "\ud800"}), "response_format.json_schema", "surrogate"),
        (of_schema(5), "response_format.json_schema.schema", "response_format.json_schema.schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "response_format.json_schema is missing"),
        (
            {"response_format": {"type": "structural_tag", "structures": [{"begin": "a", "end": "b"}]}},
            "response_format",
            "response_format.triggers must be a list",
        ),
        ({"response_format": {"type": "xml"}}, "response_format.type", "response_format.type"),
        ({"structured_outputs": {}}, "structured_outputs", "it needs exactly one of json, regex, choice"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs", "sets regex and choice"),
        ({"structured_outputs": {"regexp": "a"}}, "structured_outputs.regexp", "structured_outputs.regexp"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag", "must be an object"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex", "unclosed group"),
        ({"guided_regex": "a{1000000000}"}, "guided_regex", "guided_regex cannot be used: "),
        ({"guided_regex": "\udfff"}, "guided_regex", "half of a surrogate pair"),
        ({"guided_choice": []}, "guided_choice", "at least one character"),
        ({"guided_choice": "yes"}, "guided_choice", "guided_choice"),
        ({"guided_grammar": "root ::= x"}, "guided_grammar", "Rule 'x' not found"),
        ({"guided_json": "{"}, "guided_json", "guided_json is not JSON"),
        ({"guided_json": {}, "guided_regex": "a"}, "guided_json", "guided_json and guided_regex are both set"),
    ],
)
def test_a_form_that_cannot_be_had_is_a_400_before_the_first_token(
    server: Server, fields: dict[str, Any], param: str, says: str
) -> None:
    for path, body in (("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION)):
        for stream in (False, True):
            data = json.dumps({**body, **fields, "stream": stream})
            headers = {"content-type": "application/json"}
            answer = httpx.post(f"{server.url}{path}", content=data, headers=headers, timeout=60)
            assert answer.status_code == 400, answer.text
            error = answer.json()["error"]
            assert says in error["message"]
            assert error["param"] == param


async def test_hostile_grammars_leave_the_server_answering(server: Server) -> None:
    hostile: list[dict[str, Any]] = [
        {"guided_regex": "a{1000000000}"},
        {"guided_json": {"type": "integer", "minimum": 0, "maximum": 10**15, "multipleOf": 9999}},
        {
            "guided_grammar": "\n".join(
                ["root ::= r0", *(f"r{i} ::= r{i + 1} r{i + 1}" for i in range(60)), 'r60 ::= "a"']
            )
        },
        {"guided_grammar": 'start: e\ne: e e | e e e | e e e e | "a"'},
        {"guided_regex": "(" * 50_000},
        {"guided_json": {"properties": {f"p{i}": {"type": "string"} for i in range(2000)}}},
    ]
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
        attacks = [
            asyncio.create_task(client.post("/v1/completions", json={**COMPLETION, "max_tokens": 50, **fields}))
            for fields in hostile
        ]
        answered_meanwhile = 0
        while not all(attack.done() for attack in attacks):
            assert (await client.get("/health")).status_code == 200
            answered_meanwhile += not all(attack.done() for attack in attacks)
            await asyncio.sleep(0.05)
        statuses = [attack.result().status_code for attack in attacks]
        assert set(statuses) <= {200, 400, 429}  # 429: the one before it took too long
        assert answered_meanwhile > 0
        assert (await client.post("/v1/completions", json={**COMPLETION, "max_tokens": 3})).status_code == 200
