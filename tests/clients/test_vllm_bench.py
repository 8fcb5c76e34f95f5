"""`vllm bench serve`, from PyPI: it takes us for vLLM, and what our own benchmark writes has the names of its."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.clients.packages import vllm
from tests.engine.bench.test_bench import VLLM_NAMES
from tests.engine.server.conftest import Server

# The program `vllm` would import its own server first.
BENCH_SERVE = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""
LOAD = ["--dataset-name=random", "--random-input-len=32", "--random-output-len=8", "--num-prompts=20"]


def result_of(command: list[str], folder: Path) -> dict[str, Any]:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment = {**clean, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return dict(json.loads((folder / "result.json").read_text()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "endpoint"), [("vllm", "/v1/completions"), ("openai-chat", "/v1/chat/completions")]
)
def test_it_measures_every_request_and_counts_as_the_server_does(
    server: Server, tiny_model_dir: Path, tmp_path: Path, backend: str, endpoint: str
) -> None:
    before = server.metric("vllm:generation_tokens_total"), server.metric("vllm:prompt_tokens_total")
    where = [f"--backend={backend}", f"--endpoint={endpoint}", f"--base-url={server.url}", "--model=tiny"]
    how = [f"--tokenizer={tiny_model_dir}", "--max-concurrency=4", "--ignore-eos", "--disable-tqdm"]
    save = ["--save-result", "--save-detailed", f"--result-filename={tmp_path / 'result.json'}"]
    found = result_of([str(vllm()), "-c", BENCH_SERVE, *where, *LOAD, *how, *save], tmp_path)
    assert (found["completed"], found["failed"]) == (20, 0)
    assert found["output_lens"] == [8] * 20
    generated = server.metric("vllm:generation_tokens_total") - before[0]
    prompts = server.metric("vllm:prompt_tokens_total") - before[1]
    assert generated - found["total_output_tokens"] in (0, 8)  # a first request may only try the server
    assert 0 <= prompts - found["total_input_tokens"] <= prompts / 20
    assert all(first > 0 for first in found["ttfts"])
    assert all(len(gaps) <= 8 for gaps in found["itls"])  # a chat begins with a piece that tells the role
    assert found.keys() >= VLLM_NAMES
