"""Adapters of an LLMService, up to a real engine that is started with exactly what becomes of it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import AutoModelForCausalLM

from e2e.hub_server import make_server
from quire_operator.builders.cached_model import pinned
from quire_operator.builders.circumstances import Circumstances
from quire_operator.builders.engine_env import engine_env
from quire_operator.builders.engines import engine_of
from quire_operator.plan.acceptance import refusal_of
from quire_operator.settings import Settings
from tests.engine.lora.adapters import make_adapter
from tests.engine.server.conftest import Server, environment, free_port
from tests.operator.services import service

NAMES = ("llama", "org/sql", "poems, all=")


@pytest.fixture(scope="module")
def adapters(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    model, folder = AutoModelForCausalLM.from_pretrained(tiny_model_dir), tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("sql", "poems")):
        make_adapter(model, folder / name, seed=seed, target_modules=["q_proj", "down_proj"])
    return {name: folder / name for name in ("sql", "poems")}


@pytest.fixture(scope="module")
def hub(adapters: dict[str, Path]) -> Iterator[ThreadingHTTPServer]:
    server = make_server({"org/sql": adapters["sql"]}, host="127.0.0.1")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def start(run_dir: Path, model: Path, hub: ThreadingHTTPServer, wanted: list[dict[str, str]], **cached: str) -> Server:
    """As the pod's container does, with its home and its port moved to where this machine has room.

    `cached` are adapters that a Job has brought onto the claim, in these revisions.
    """
    port = free_port()
    cache: dict[str, Any] = {"cache": {"claimName": "models"}} if cached else {}
    built = service(
        model={"source": f"image://{model}", "adapters": wanted, "dtype": "float32"},
        engine={"args": [f"--port={port}", "--host=127.0.0.1"]},
        resources={"gpu": {"count": 0}},
        **cache,
    )
    assert refusal_of(built.spec) is None
    settings = Settings(hub_endpoint=f"http://127.0.0.1:{hub.server_port}")
    circumstances = Circumstances(settings, cached_adapters=cached)
    built = pinned(built, circumstances)
    variables = {v["name"]: v["value"] for v in engine_env(built, circumstances)}
    variables |= {"HOME": str(run_dir), "HF_HOME": str(run_dir / "huggingface")}
    (run_dir / "termination-log").touch()
    command = [sys.executable, "-m", "quire_engine.cli", "serve", *engine_of(built).args]
    with (run_dir / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment(run_dir) | variables | _found())
    return Server(process, port, run_dir)


def _found() -> dict[str, str]:
    return {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}


def test_a_real_engine_answers_by_each_adapter_wherever_it_comes_from(
    tiny_model_dir: Path, adapters: dict[str, Path], hub: ThreadingHTTPServer, tmp_path: Path
) -> None:
    wanted = [
        {"name": "org/sql", "source": "hf://org/sql"},
        {"name": "poems, all=", "source": f"image://{adapters['poems']}"},
    ]
    server = start(tmp_path, tiny_model_dir, hub, wanted)
    try:
        server.wait_until_ready()
        assert [card["id"] for card in httpx.get(f"{server.url}/v1/models").json()["data"]] == [*NAMES]
        answers = [
            server.client().completions.create(model=name, prompt="def first(x):", max_tokens=8, temperature=0.0)
            for name in NAMES
        ]
        assert len({answer.choices[0].text for answer in answers}) == len(NAMES)
    finally:
        server.stop()


def test_an_adapter_that_the_hub_does_not_have_ends_the_start_by_name(
    tiny_model_dir: Path, hub: ThreadingHTTPServer, tmp_path: Path
) -> None:
    server = start(tmp_path, tiny_model_dir, hub, [{"name": "sql", "source": "hf://org/other"}])
    assert server.process.wait(60) != 0
    assert server.termination_message.startswith("ModelNotFound: --lora-modules sql: org/other is not at http://127")
    assert "Traceback" not in server.log


def test_a_real_engine_finds_a_prefetched_adapter_offline_at_its_commit(
    tiny_model_dir: Path, hub: ThreadingHTTPServer, tmp_path: Path
) -> None:
    env = environment(tmp_path) | _found() | {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}"}
    claim = tmp_path / "huggingface"
    command = [sys.executable, "-m", "quire_engine.cli", "prefetch", "org/sql", "--adapter", f"--cache={claim}"]
    commit = Path(subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout.strip()).name
    (claim / "hub/models--org--sql/refs/main").unlink()
    server = start(tmp_path, tiny_model_dir, hub, [{"name": "sql", "source": "hf://org/sql"}], sql=commit)
    try:
        server.wait_until_ready()
        answer = server.client().completions.create(model="sql", prompt="def first(x):", max_tokens=2)
        assert answer.usage is not None
    finally:
        server.stop()


def test_an_adapter_that_is_gone_from_the_claim_is_said_to_be_missing_there(
    tiny_model_dir: Path, hub: ThreadingHTTPServer, tmp_path: Path
) -> None:
    server = start(tmp_path, tiny_model_dir, hub, [{"name": "sql", "source": "hf://org/sql"}], sql="a" * 40)
    assert server.process.wait(60) != 0
    words = f"ModelNotCached: --lora-modules sql: org/sql at {'a' * 40} is not in the cache"
    assert server.termination_message.startswith(words)
