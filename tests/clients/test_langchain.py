"""LangChain's ChatOpenAI, from PyPI."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from tests.clients.packages import python_clients
from tests.engine.server.conftest import Server

SCRIPT = """
import json, sys
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

class Pet(BaseModel):
    name: str
    legs: int

@tool
def count(legs: int) -> int:
    "Count legs."
    return legs

def model(max_tokens):
    url = sys.argv[1] + "/v1"
    return ChatOpenAI(base_url=url, api_key="none", model="tiny", temperature=0, max_tokens=max_tokens, max_retries=0)

asked = [("system", "You are brief."), ("human", "What is a class?")]
whole = model(8).invoke(asked)
streamed = None
for chunk in model(8).stream(asked, stream_usage=True):
    streamed = chunk if streamed is None else streamed + chunk
pets = [model(300).with_structured_output(Pet, method=m).invoke("A pet.") for m in ("json_schema", "function_calling")]
called = model(300).bind_tools([count], tool_choice="any").invoke("Count.")
print(json.dumps({
    "whole": whole.content, "usage": whole.usage_metadata["output_tokens"],
    "streamed": streamed.content, "streamed_usage": streamed.usage_metadata["output_tokens"],
    "pets": [isinstance(pet.legs, int) for pet in pets], "calls": [call["name"] for call in called.tool_calls],
}))
"""


@pytest.fixture(scope="module")
def found(server: Server) -> dict[str, Any]:
    """What the script saw."""
    command = [str(python_clients()), "-c", SCRIPT, server.url]
    result = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert result.returncode == 0, result.stderr
    answers: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return answers


def test_a_stream_says_what_a_whole_answer_says(found: dict[str, Any]) -> None:
    assert found["streamed"] == found["whole"] != ""
    assert found["usage"] == found["streamed_usage"] == 8


def test_forms_and_calls_of_tools_parse(found: dict[str, Any]) -> None:
    assert found["pets"] == [True, True]
    assert found["calls"] == ["count"]
