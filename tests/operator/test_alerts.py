"""Each alert fires when it should and is silent when it should not, by Prometheus' own unit tests."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from e2e.panels import panel_queries
from quire_operator.builders.circumstances import EVERYTHING, Circumstances
from quire_operator.builders.prometheus_rule import build_prometheus_rule
from quire_operator.monitoring.dashboards.service import service_dashboard
from quire_operator.monitoring.operator_alerts import operator_group
from quire_operator.settings import Settings
from tests.docs.pages import REPOSITORY
from tests.operator.alert_cases import FIRES, OWN, POD, SILENT, TTFT, Case, Series, requests
from tests.operator.conftest import program
from tests.operator.services import service


def groups(**spec: Any) -> list[dict[str, Any]]:
    """All rules: those of an LLMService, and of the operator."""
    rule = build_prometheus_rule(service(**spec), Circumstances(Settings(), EVERYTHING))
    assert rule is not None
    return [*rule["spec"]["groups"], operator_group("quire-system").as_manifest(Settings().runbook_url)]


ALERTS = sorted({rule["alert"] for group in groups() for rule in group["rules"] if "alert" in rule})


@pytest.fixture(scope="module")
def promtool() -> Path:
    return program("promtool") / "promtool"


def run(promtool: Path, folder: Path, tests: list[dict[str, Any]], **spec: Any) -> None:
    """`promtool test rules`; fails with what it says."""
    rules = groups(**spec)
    (folder / "rules.json").write_text(json.dumps({"groups": rules}))
    body = {
        "rule_files": ["rules.json"],
        "evaluation_interval": tests[0]["interval"],
        "group_eval_order": [group["name"] for group in rules],  # else a window of another group is one step behind
        "tests": tests,
    }
    (folder / "test.json").write_text(json.dumps(body))
    command = [promtool, "test", "rules", folder / "test.json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def expect(promtool: Path, folder: Path, case: Case, series: Series, *, firing: bool) -> None:
    """Whether the alert fires."""
    alerts = f'count(ALERTS{{alertname="{case.alert}",alertstate="firing",severity=~"{case.severity}"}})'
    test = {
        "interval": case.step,
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {"expr": alerts, "eval_time": case.at, "exp_samples": [{"labels": "{}", "value": 1}] if firing else []}
        ],
    }
    run(promtool, folder, [test], **case.spec)


def test_every_alert_is_tried_both_ways() -> None:
    assert sorted({case.alert for case in FIRES.values()}) == ALERTS
    assert sorted({case.alert for case in SILENT.values()}) == ALERTS


@pytest.mark.control_plane
@pytest.mark.parametrize("case", FIRES.values(), ids=FIRES)
def test_an_alert_fires(promtool: Path, tmp_path: Path, case: Case) -> None:
    expect(promtool, tmp_path, case, case.series, firing=True)


@pytest.mark.control_plane
@pytest.mark.parametrize("case", SILENT.values(), ids=SILENT)
def test_an_alert_is_silent(promtool: Path, tmp_path: Path, case: Case) -> None:
    expect(promtool, tmp_path, case, case.series, firing=False)


@pytest.mark.control_plane
@pytest.mark.parametrize(
    "case",
    {case.alert: case for case in FIRES.values() if case.alert.startswith("LLM")}.values(),
    ids=lambda case: case.alert,
)
def test_what_happens_to_another_service_of_a_similar_name_is_its_own(
    promtool: Path, tmp_path: Path, case: Case
) -> None:
    others = {name.replace('="llama"', '="llama-2"'): values for name, values in case.series.items()}
    expect(promtool, tmp_path, case, others, firing=False)


@pytest.mark.control_plane
def test_every_rule_and_template_is_one_that_prometheus_takes(promtool: Path, tmp_path: Path) -> None:
    (tmp_path / "rules.json").write_text(json.dumps({"groups": groups()}))
    command = [promtool, "check", "rules", "--lint=all", "--lint-fatal", tmp_path / "rules.json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.control_plane
def test_a_threshold_between_two_buckets_takes_requests_to_be_spread_evenly(promtool: Path, tmp_path: Path) -> None:
    """Of 100, 60 are below 2.5 s and 80 below 5 s: 3 s is a fifth of the way, so 64 are taken to be in time."""
    series = {**requests(TTFT, "2.5", "0+60x60", "0+100x60"), **requests(TTFT, "5.0", "0+80x60", "0+100x60")}
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": 'round(llmservice:slo_errors:ratio_rate1h{slo="timeToFirstToken"}, 0.0001)',
                "eval_time": "50m",
                "exp_samples": [
                    {"labels": '{namespace="default",llmservice="llama",slo="timeToFirstToken"}', "value": 0.36}
                ],
            }
        ],
    }
    run(promtool, tmp_path, [test], monitoring={"slo": {"timeToFirstToken": "3s"}})


COST = {
    f'quire_operator_llmservice_gpus{{{OWN},product="NVIDIA-L4",pod="leader"}}': "2x120",
    f'quire_operator_llmservice_gpus{{{OWN},product="NVIDIA-L4",pod="former"}}': "2x120",
    'quire_operator_gpu_hourly_price{product="NVIDIA-L4",pod="leader"}': "3x120",
    'quire_operator_gpu_hourly_price{product="NVIDIA-L4",pod="standby"}': "3x120",
    'quire_operator_gpu_hourly_price{product="GPU",pod="leader"}': "99x120",
}


def cost(legend: str, panel: str) -> str:
    """The query of a panel, with an hour shown."""
    board = service_dashboard().as_json()
    queries = panel_queries(board, window="5m", shown="1h", namespace="default", llmservice="llama")
    (found,) = [query.expression for query in queries if (query.panel, query.legend) == (panel, legend)]
    # here minutes are affordable
    return found.replace(":1s]", ":1m]")


@pytest.mark.control_plane
def test_cost_is_what_gpus_cost_over_what_was_answered(promtool: Path, tmp_path: Path) -> None:
    """Two GPUs at 3 an hour; 100 answers, 4,000 generated and 6,000 prompt tokens a minute."""
    answers = f'vllm:request_success_total{{{POD},finished_reason="stop"}}'
    aborted = f'vllm:request_success_total{{{POD},finished_reason="abort"}}'
    load = {
        answers: "0+100x120",
        aborted: "0+50x120",
        f"vllm:generation_tokens_total{{{POD}}}": "0+4000x120",
        f"vllm:prompt_tokens_total{{{POD}}}": "0+6000x120",
    }
    expected = [
        (cost("now", "Cost of an hour"), 6.0),
        (cost("__auto", "Cost per 1,000 requests"), 1.0),
        (cost("generated", "Cost per million tokens"), 25.0),
        (cost("prompt and generated", "Cost per million tokens"), 10.0),
    ]
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in {**COST, **series}.items()],
            "promql_expr_test": [
                {
                    "expr": f"round({expression}, 0.001)",
                    "eval_time": "119m",
                    "exp_samples": [{"labels": "{}", "value": value if series or expression == expected[0][0] else 0}],
                }
                for expression, value in expected
            ],
        }
        for series in (load, {})  # and with nothing asked, where a quotient would be no number
    ]
    run(promtool, tmp_path, tests)


def test_every_alert_leads_to_a_heading_that_exists() -> None:
    headings = [
        line.lstrip("#").strip()
        for line in (REPOSITORY / "docs/operations.md").read_text().splitlines()
        if line.startswith("#")
    ]
    anchors = {heading.lower().replace(" ", "-") for heading in headings}
    links = {
        rule["annotations"]["runbook_url"] for group in groups() for rule in group["rules"] if "annotations" in rule
    }
    assert len(links) == len(ALERTS)
    assert {link.partition("#")[2] for link in links} <= anchors
    described = {heading for heading in headings if heading.startswith(("LLMService", "QuireOperator"))}
    assert described == set(ALERTS), "an alert that does not exist is explained"
