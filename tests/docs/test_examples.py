"""The examples of the pages, run as a reader would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from transformers import AutoModelForCausalLM

from quire_engine.config import EngineConfig
from quire_engine.flags import FlagParser, from_namespace
from quire_engine.server.settings import ServerSettings
from quire_operator.api import KIND, LLMService, parse_llmservice
from quire_operator.builders.circumstances import Circumstances
from quire_operator.builders.desired import desired_objects
from quire_operator.builders.engines import engine_of
from quire_operator.plan.acceptance import refusal_of
from quire_operator.settings import Settings
from tests.docs.pages import REPOSITORY, Block, blocks
from tests.engine.lora.adapters import make_adapter
from tests.engine.server.conftest import Server, launch
from tests.operator.conftest import program

EXAMPLES = [block for block in blocks("yaml") if f"kind: {KIND}\n" in block.text]
SCRIPTS = [block for block in blocks("python") if "from quire_engine import" in block.text]
CLIENTS = [block for block in blocks("python") if re.search("import (openai|httpx)", block.text)]
CALLS = [block for block in blocks("bash") if block.page == "http.md" and "curl " in block.text]
BENCHMARKS = [block for block in blocks("bash") if block.page == "bench.md"]
OF_VECTORS = ("/v1/embeddings", "client.embeddings", "/score", "/rerank")
IN_PYTHON = {  # as the openai package calls them
    "/v1/completions": "client.completions.create(",
    "/v1/chat/completions": "client.chat.completions.create(",
    "/v1/responses": "client.responses.create(",
    "/v1/embeddings": "client.embeddings.create(",
    "/v1/models": "client.models.list(",
    "/v1/models/{name}": "client.models.retrieve(",
}


def parsed(example: Block) -> LLMService:
    return parse_llmservice(yaml.safe_load(example.text), strict=True)


def test_every_situation_has_an_example_and_no_block_is_passed_over() -> None:
    assert len(EXAMPLES) >= 9
    assert {block.page for block in EXAMPLES} == {
        "README.md",
        "autoscaling.md",
        "cache.md",
        "migrating.md",
        "llmservice.md",
        "operations.md",
        "security.md",
    }
    assert {block.page for block in SCRIPTS} == {"README.md", "engine.md", "quickstart.md"}
    assert {block.page for block in CLIENTS} == {"engine.md", "http.md", "llmservice.md", "tools.md"}
    assert len(SCRIPTS) + len(CLIENTS) == len(blocks("python"))


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_an_example_is_accepted_and_becomes_a_workload(example: Block) -> None:
    service = parsed(example)
    assert refusal_of(service.spec) is None
    kinds = {child["kind"] for child in desired_objects(service, Circumstances(Settings()))}
    expected = "LeaderWorkerSet" if service.spec.parallelism.nodes > 1 else "Deployment"
    assert kinds & {"Deployment", "LeaderWorkerSet"} == (set() if service.spec.suspend else {expected})


@pytest.mark.parametrize("example", [e for e in EXAMPLES if parsed(e).spec.engine.type == "quire"], ids=str)
def test_the_engine_takes_the_flags_of_an_example(example: Block) -> None:
    parser = FlagParser("quire-engine serve")
    parser.add_settings(EngineConfig)
    parser.add_settings(ServerSettings)
    service = parsed(example)
    if service.spec.engine.type != "quire":
        return  # another engine's, which is not here to be asked
    flags = parser.parse_args(engine_of(service).args)
    from_namespace(ServerSettings, flags)
    from_namespace(EngineConfig, flags)


@pytest.fixture(scope="module")
def folder(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which ./tiny is the model, as after `quire-engine tiny ./tiny`."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "tiny").symlink_to(tiny_model_dir)
    return folder


def run(code: str, folder: Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code]
    result = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_a_script_prints_what_the_model_says(script: Block, folder: Path) -> None:
    assert run(script.text, folder).strip()


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    """What `quire-engine serve ./tiny` starts, on a free port."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        started = launch(folder / "run", "./tiny")
    try:
        started.wait_until_ready()
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def embedder(folder: Path) -> Iterator[Server]:
    """What `quire-engine serve ./tiny --task embed` starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        started = launch(folder / "run-embedder", "./tiny", "--task=embed")
    try:
        started.wait_until_ready()
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def adapted(folder: Path) -> Iterator[Server]:
    """What `quire-engine serve ./tiny --enable-lora --allow-runtime-lora-updating` starts, with ./adapter beside it."""
    model = AutoModelForCausalLM.from_pretrained(folder / "tiny")
    make_adapter(model, folder / "adapter", target_modules=["q_proj", "o_proj"])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        started = launch(folder / "run-adapted", "./tiny", "--enable-lora", "--allow-runtime-lora-updating")
    try:
        started.wait_until_ready()
        yield started
    finally:
        started.stop()


def asked_by(example: Block, request: pytest.FixtureRequest) -> Server:
    """The server of the kind that an example needs."""
    kind = "embedder" if any(p in example.text for p in OF_VECTORS) else "server"
    server: Server = request.getfixturevalue("adapted" if "lora_adapter" in example.text else kind)
    return server


@pytest.mark.parametrize("client", CLIENTS, ids=str)
def test_a_client_prints_an_answer(client: Block, folder: Path, request: pytest.FixtureRequest) -> None:
    code, addresses = re.subn(r'"http://[^"/]+', f'"{asked_by(client, request).url}', client.text)
    assert addresses
    # the LLMService `tiny` serves under its own name, this server under its model's
    assert run(code.replace('model="tiny"', 'model="./tiny"'), folder).strip()


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_a_call_is_answered(call: Block, folder: Path, request: pytest.FixtureRequest) -> None:
    one = asked_by(call, request)
    strict = 'set -e; curl() { command curl --fail-with-body -sS --max-time 60 "$@"; }\n'
    script = strict + call.text.replace("localhost:8000", f"localhost:{one.port}")
    result = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert '{"error"' not in result.stdout


def test_every_endpoint_has_a_call_in_either_language(server: Server) -> None:
    asked = "".join(call.text for call in CALLS)
    in_python = "".join(client.text for client in CLIENTS if client.page == "http.md")
    for path in ["/", *httpx.get(f"{server.url}/openapi.json").json()["paths"]]:
        path = re.sub("^/v[12]/(score|rerank)$", r"/\1", path)  # other names
        assert re.search(rf"localhost:8000{re.escape(path.split('{')[0])}(\S*/tiny)?\s", asked), path
        assert IN_PYTHON.get(path, f'{path}"') in in_python, path


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=str)
def test_a_benchmark_runs_to_its_end(benchmark: Block, folder: Path, server: Server) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    script = "set -e\n" + benchmark.text.replace("--port 8000", f"--port {server.port}")
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert re.search(r"per second|tokens/s", result.stdout)
    if "bench serve" in benchmark.text:
        assert "50/50 [" in result.stderr, "no progress was shown"


@pytest.mark.control_plane
def test_the_readmes_helm_command_installs_the_images_that_it_names() -> None:
    (command,) = {text for block in blocks("bash") for text in re.findall(r"helm install (?:.*\\\n)*.*", block.text)}
    words = command.replace("\\\n", "").replace("--create-namespace", "").split()
    line = [str(program("helm") / "helm"), "template", *words[2:]]
    result = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "image: REGISTRY/quire/operator:0.1.0" in result.stdout
    assert "--engine-image=REGISTRY/quire/engine:0.1.0" in result.stdout
