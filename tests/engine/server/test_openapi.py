"""What the server says of itself at /openapi.json, and that it holds to it whatever is sent."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import CheckFunction, not_a_server_error
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from tests.engine.server.conftest import Server, launch

# That all is refused which the schema does not allow cannot be asked for: unknown fields are let pass, and "5" is 5.
CHECKS: list[CheckFunction] = [
    allow_header_conformance,
    content_type_conformance,
    not_a_server_error,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
]
OF_VECTORS = r"^(/v1/embeddings|(/v\d)?/(score|rerank))$"
NEEDED = {"prompt", "messages", "input", "tokens", "text_1", "text_2", "query", "documents"}
MODES = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)


def some_fields(body: dict[str, Any], dice: random.Random) -> dict[str, Any]:
    """A body with few fields beside those that it needs: of all at once, one is always refused."""
    others = sorted(body.keys() - NEEDED - {"model"})  # any name would be a 404
    kept = {*dice.sample(others, min(len(others), dice.randrange(4))), *NEEDED}
    return {name: value for name, value in body.items() if name in kept}


def ask_all(schema: Any) -> int:
    """Ask every operation for what its schema allows and for what it does not; returns how many there are."""
    number = 0
    for found in schema.get_all_operations():
        operation, number = found.ok(), number + 1
        for mode in MODES:
            if mode is MODES[1] and not operation.body:
                continue  # there is nothing to send wrong

            @settings(
                max_examples=30,
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode), dice=st.randoms(use_true_random=False))
            def holds(case: schemathesis.Case, dice: random.Random) -> None:
                if isinstance(case.body, dict):
                    case.body = some_fields(case.body, dice)
                case.call_and_validate(checks=CHECKS, timeout=60)

            holds()
    return number


@pytest.fixture(scope="module")
def small(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose answers are short, however long they are wished for."""
    started = launch(tmp_path_factory.mktemp("small"), tiny_model_dir, "--max-model-len=64", "--served-model-name=tiny")
    started.wait_until_ready()
    yield started
    started.stop()


@pytest.fixture(scope="module")
def embedder(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = launch(tmp_path_factory.mktemp("embedder"), tiny_model_dir, "--task=embed", "--served-model-name=tiny")
    started.wait_until_ready()
    yield started
    started.stop()


@pytest.mark.slow
def test_what_is_said_of_text_holds(small: Server) -> None:
    schema = schemathesis.openapi.from_url(f"{small.url}/openapi.json")
    assert ask_all(schema.exclude(path_regex=OF_VECTORS)) > 10
    assert small.health() == 200
    handlers = ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/tokenize", "/detokenize")
    answers = {
        (handler, status): small.metric("http_requests_total", handler=handler, status=status)
        for handler in handlers
        for status in ("2xx", "4xx")
    }
    assert min(answers.values()) >= 3, answers  # else little was tried


def test_what_is_said_of_vectors_holds(embedder: Server) -> None:
    schema = schemathesis.openapi.from_url(f"{embedder.url}/openapi.json")
    assert ask_all(schema.include(path_regex=OF_VECTORS)) == 6
    assert embedder.health() == 200


def test_every_endpoint_with_a_body_says_what_its_errors_are(server: Server) -> None:
    paths = httpx.get(f"{server.url}/openapi.json").json()["paths"]
    posts = {path: methods["post"]["responses"] for path, methods in paths.items() if "post" in methods}
    assert len(posts) > 10
    for path, responses in posts.items():
        assert {"200", "400", "401", "404", "413", "415", "429", "503", "default"} <= responses.keys(), path
        assert "422" not in responses, path
