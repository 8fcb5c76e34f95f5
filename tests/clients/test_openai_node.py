"""OpenAI's package for Node, from npm."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.clients.packages import node_client
from tests.engine.server.conftest import Server

SCRIPT = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.argv[2] + "/v1", apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "What is a class?" }];
const asked = { model: "tiny", messages, max_tokens: 8, temperature: 0 };
const whole = await client.chat.completions.create(asked);
let streamed = "", usage = null;
const streaming = { stream: true, stream_options: { include_usage: true } };
const stream = await client.chat.completions.create({ ...asked, ...streaming });
for await (const chunk of stream) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
const completion = await client.completions.create({ model: "tiny", prompt: "Return", max_tokens: 4, n: 2 });
const properties = { legs: { type: "integer" } };
const schema = { type: "object", properties, required: ["legs"], additionalProperties: false };
const format = { type: "json_schema", json_schema: { name: "pet", schema, strict: true } };
const formed = await client.chat.completions.create({ ...asked, max_tokens: 200, response_format: format });
const tools = [{ type: "function", function: { name: "count", parameters: schema } }];
const called = await client.chat.completions.create({ ...asked, max_tokens: 200, tools, tool_choice: "required" });
let refused = null;
try { await client.chat.completions.create({ ...asked, model: "other" }); }
catch (error) { refused = [error.constructor.name, error.status, error.param]; }
const models = await client.models.list();
console.log(JSON.stringify({
  models: models.data.map((model) => model.id), whole: whole.choices[0].message.content, streamed, usage,
  choices: completion.choices.length, formed: formed.choices[0].message.content,
  call: called.choices[0].message.tool_calls[0].function, refused,
}));
"""


@pytest.fixture(scope="module")
def found(server: Server) -> dict[str, Any]:
    """What the script saw."""
    folder: Path = node_client()
    script = folder / "script.mjs"
    script.write_text(SCRIPT)
    result = subprocess.run(["node", str(script), server.url], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    answers: dict[str, Any] = json.loads(result.stdout)
    return answers


def test_a_stream_says_what_a_whole_answer_says(found: dict[str, Any]) -> None:
    assert found["models"] == ["tiny"]
    assert found["streamed"] == found["whole"] != ""
    assert found["usage"]["completion_tokens"] == 8
    assert found["choices"] == 2


def test_forms_and_calls_of_tools_parse(found: dict[str, Any]) -> None:
    assert isinstance(json.loads(found["formed"])["legs"], int)
    assert found["call"]["name"] == "count"
    assert isinstance(json.loads(found["call"]["arguments"])["legs"], int)


def test_an_error_is_the_clients_own_class(found: dict[str, Any]) -> None:
    assert found["refused"] == ["NotFoundError", 404, "model"]
