"""The snippets of docs/operations.md, read by what they are for."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from quire_operator.settings import Settings
from tests.docs.pages import REPOSITORY, blocks, first_cells, section
from tests.operator.conftest import program
from tests.operator.services import service

PAGE = REPOSITORY / "docs/operations.md"


def snippet(key: str) -> dict[str, Any]:
    """The one block whose top level has this key."""
    found = [yaml.safe_load(block.text) for block in blocks("yaml") if block.page == PAGE.name]
    (body,) = [body for body in found if key in body]
    return dict(body)


def test_the_objectives_are_ones_that_the_api_takes() -> None:
    slo = service(**snippet("monitoring")).spec.monitoring.slo
    assert (slo.time_to_first_token, slo.time_per_output_token, slo.objective) == ("800ms", "40ms", 0.99)


def test_the_prices_are_ones_that_the_operator_takes() -> None:
    prices = snippet("gpuHourlyPrice")["gpuHourlyPrice"]
    assert Settings(gpu_hourly_prices=tuple(f"{key}={value}" for key, value in prices.items())).prices() == prices


@pytest.mark.control_plane
def test_prometheus_takes_the_scrape_job_and_it_makes_the_labels_that_queries_select_by(tmp_path: Path) -> None:
    job = snippet("relabel_configs")
    made = {entry["target_label"] for entry in job["relabel_configs"]}
    assert made == {"namespace", "pod", "llmservice"}
    config = {"scrape_configs": [{"job_name": "pods", "kubernetes_sd_configs": [{"role": "pod"}], **job}]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    command = [program("promtool") / "promtool", "check", "config", "--syntax-only", tmp_path / "config.json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_every_metric_of_the_operator_is_told_with_its_labels() -> None:
    source = (REPOSITORY / "operator/quire_operator/metrics.py").read_text()
    told = "\n".join(first_cells(section(PAGE, "### Metrics")))
    names = {line.partition('"')[2].partition('"')[0] for line in source.splitlines() if '"quire_operator_' in line}
    cells = section(PAGE, "### Metrics")
    assert len(names) >= 12
    assert {name for name in names if f"`{name}" not in cells} == set()
    assert "quire_operator_llmservice_replicas{namespace, name, state}" in told
