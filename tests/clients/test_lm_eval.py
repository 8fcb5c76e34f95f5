"""EleutherAI's evaluation harness, from PyPI: it reads out of our logprobs what it computes with transformers."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.clients.packages import python_clients
from tests.engine.server.conftest import Server

QUESTIONS = [
    ("A class is", ["an object factory", "a kind of fish", "green", "loud"], 0),
    ("The return statement", ["sleeps", "leaves the function", "eats", "is blue"], 1),
    ("A list holds", ["water", "nothing ever", "items in order", "birds"], 2),
    ("An exception is", ["a cake", "a song", "an error that is raised", "a river"], 2),
]
TASK = """
task: local_choice
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {data}}}}}
validation_split: validation
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""


def evaluated(folder: Path, *arguments: str) -> tuple[dict[str, float], list[Any]]:
    """The scores, and the log-likelihoods of every choice of every question."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"HF_DATASETS_CACHE": str(folder / "datasets"), "TOKENIZERS_PARALLELISM": "false"}
    output = folder / "-".join(arguments[1:2])
    command = [str(python_clients()), "-m", "lm_eval", *arguments, "--tasks", "local_choice"]
    command += ["--include_path", str(folder), "--output_path", str(output), "--log_samples"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    (scores,), (samples,) = output.rglob("results_*.json"), output.rglob("samples_*.jsonl")
    found = json.loads(scores.read_text())["results"]["local_choice"]
    lines = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda line: line["doc_id"])
    return {name: found[f"{name},none"] for name in ("acc", "acc_norm")}, [line["filtered_resps"] for line in lines]


@pytest.mark.slow
def test_scores_are_those_of_transformers(server: Server, tiny_model_dir: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps({"question": q, "choices": c, "answer": a}) for q, c, a in QUESTIONS))
    (tmp_path / "task.yaml").write_text(TASK.format(data=data))
    ours = f"model=tiny,base_url={server.url}/v1/completions,tokenizer={tiny_model_dir},num_concurrent=4,max_retries=1"
    scores, likelihoods = evaluated(tmp_path, "--model", "local-completions", "--model_args", ours)
    reference = f"pretrained={tiny_model_dir},dtype=float32"
    expected, exact = evaluated(tmp_path, "--model", "hf", "--device", "cpu", "--model_args", reference)
    assert scores == expected
    for ours_of_one, exact_of_one in zip(likelihoods, exact, strict=True):
        for (ours_value, ours_greedy), (exact_value, exact_greedy) in zip(ours_of_one, exact_of_one, strict=True):
            assert float(ours_value) == pytest.approx(float(exact_value), abs=1e-3)
            assert ours_greedy == exact_greedy
