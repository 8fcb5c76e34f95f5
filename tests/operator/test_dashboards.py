"""The dashboards' queries, answered by a real Prometheus that scrapes a real engine and a real operator."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from docs.write_monitoring import CHART, files
from e2e.cluster.control_plane import ControlPlane
from e2e.panels import PanelQuery, is_number, panel_queries
from quire_operator.builders.circumstances import EVERYTHING, Circumstances
from quire_operator.builders.prometheus_rule import build_prometheus_rule
from quire_operator.kubeapi.resources import DEPLOYMENTS
from quire_operator.monitoring.dashboards.fleet import fleet_dashboard
from quire_operator.monitoring.dashboards.service import service_dashboard
from quire_operator.monitoring.operator_alerts import operator_group
from quire_operator.settings import Settings
from tests.engine.server.conftest import Server, launch
from tests.operator.api_client import ApiClient, Namespace, eventually
from tests.operator.conftest import operators, program
from tests.operator.operator_process import OperatorProcess
from tests.operator.prometheus import INTERVAL, PrometheusProcess
from tests.operator.services import manifest, service

FLEET, SERVICE = fleet_dashboard().as_json(), service_dashboard().as_json()
NAMESPACE = "watched"
PRICE = 3.0


@dataclass
class Watched:
    """An engine that is scraped as `llama` and again as `llama-2`; the operator knows of these and of `llama-3`."""

    prometheus: PrometheusProcess
    server: Server
    operator: OperatorProcess

    def queries(self, dashboard: dict[str, Any], name: str = "llama") -> list[PanelQuery]:
        return list(panel_queries(dashboard, window="5s", shown="2m", namespace=NAMESPACE, llmservice=name))


@pytest.fixture(scope="module")
def watched(
    control_plane: ControlPlane, api: ApiClient, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    server = launch(folder / "engine", tiny_model_dir, "--served-model-name=tiny", "--max-num-seqs=4")
    try:
        with operators(control_plane, folder) as start:
            operator = start("--engine-image=quire/engine:test", f"--gpu-hourly-price=default={PRICE}")
            operator.wait_until_leading()
            _make_services(api)
            server.wait_until_ready()
            engine = server.url.removeprefix("http://")
            targets = [_target(engine, namespace=NAMESPACE, llmservice=name, pod=name) for name in ("llama", "llama-2")]
            targets.append(_target(operator.url.removeprefix("http://"), namespace="quire-system", pod="operator"))
            prometheus = PrometheusProcess(program("prometheus") / "prometheus", folder, targets, _rules())
            try:
                yield Watched(prometheus, server, operator)
            finally:
                prometheus.stop()
    finally:
        server.stop()


def _target(address: str, **labels: str) -> dict[str, Any]:
    return {
        "job_name": "-".join(labels.values()),
        "honor_labels": True,
        "static_configs": [{"targets": [address], "labels": labels}],
    }


def _make_services(api: ApiClient) -> None:
    api.make_namespace(NAMESPACE)
    namespace = Namespace(api, NAMESPACE)
    for name in ("llama", "llama-2", "llama-3"):
        namespace.create(manifest(name, resources={"gpu": {"count": 1}}))
    for name in ("llama", "llama-2"):
        eventually(lambda name=name: namespace.find(DEPLOYMENTS, name))
        namespace.roll_out(name)
        namespace.add_pod(name, {"phase": "Running"})
        eventually(lambda name=name: namespace.condition(name, "Ready")["status"] == "True")


def _rules() -> list[dict[str, Any]]:
    rule = build_prometheus_rule(service("llama"), Circumstances(Settings(), EVERYTHING))
    assert rule is not None
    groups = [*rule["spec"]["groups"], operator_group("quire-system").as_manifest("https://runbook.example")]
    return [{**group, "interval": INTERVAL} for group in groups]  # for a test, five minutes are long


@pytest.mark.control_plane
def test_every_query_gives_a_number_while_nothing_is_asked(watched: Watched) -> None:
    eventually(lambda: watched.prometheus.query("vllm:num_requests_running"))
    eventually(lambda: watched.prometheus.query("quire_operator_leading == 1"))
    for name in ("llama", "llama-3"):  # an idle engine, and a service without one
        for query in [*watched.queries(FLEET), *watched.queries(SERVICE, name)]:
            samples = watched.prometheus.query(query.expression)
            assert is_number(samples), f"{name}: {query}: {query.expression}: {samples}"


POSITIVE = {
    "Replicas / ready",
    "Replicas / wanted",
    "GPUs / __auto",
    "Answers / __auto",
    "Tokens / __auto",
    "Tokens / {{namespace}}/{{llmservice}}",
    "Throughput / generated",
    "Throughput / prompt",
    "Requests / running",
    "Requests / waiting",
    "Queue / {{namespace}}/{{llmservice}}",
    "Running by pod / {{pod}}",
    "Time to first token / P50",
    "Time to first token / P99",
    "Time per output token / P50",
    "Time per output token / P99",
    "Whole answer / P50",
    "Whole answer / P99",
    "KV cache in use / {{pod}}",
    "Prefix hits / hits",
    "Errors by code / {{status}}",
    "Finish reasons / {{finished_reason}}",
    "Cost of an hour / now",
    "Cost of an hour / {{namespace}}",
    "Cost per 1,000 requests / __auto",
    "Cost per million tokens / generated",
    "Cost per million tokens / prompt and generated",
    "LLMServices / all",
    "LLMServices / ready",
    "By condition / {{type}}={{status}}",
    "GPUs held / {{product}}",
    "GPUs by service / {{namespace}}/{{name}}",
    "Leading / leading",
    "Leading / replicas",
    "API calls / {{verb}}",
}
"""Panels, and legends, that are above zero while more is asked than the engine can take."""


@pytest.mark.control_plane
def test_every_query_gives_data_under_load(watched: Watched) -> None:
    queries = {str(query): query for query in [*watched.queries(FLEET), *watched.queries(SERVICE)]}
    assert set(queries) >= POSITIVE
    with Load(watched.server):
        for name, query in queries.items():
            if name in POSITIVE:
                eventually(lambda q=query: any(value > 0 for _, value in watched.prometheus.query(q.expression)), 60)
            assert is_number(watched.prometheus.query(query.expression)), name


@pytest.mark.control_plane
def test_a_service_is_not_mistaken_for_one_whose_name_begins_alike(watched: Watched) -> None:
    watched.server.client().completions.create(model="tiny", prompt="Return", max_tokens=4)
    served = watched.server.metric("vllm:generation_tokens_total")
    total = 'sum(vllm:generation_tokens_total{namespace="watched",llmservice="llama"})'
    eventually(lambda: watched.prometheus.query(total)[0][1] == served)
    for query in watched.queries(SERVICE, "llam"):
        samples = watched.prometheus.query(query.expression)
        assert all(value == 0 for _, value in samples), f"{query}: {samples}"


@pytest.mark.control_plane
def test_prometheus_evaluates_every_rule(watched: Watched) -> None:
    def health() -> list[str]:
        failed = [rule for rule in watched.prometheus.rules() if rule["health"] == "err"]
        assert not failed, failed
        return [rule["health"] for rule in watched.prometheus.rules()]

    assert len(health()) > 20
    eventually(lambda: set(health()) == {"ok"})


class Load:
    """Six clients ask an engine that takes four at once, and one asks for a model that is not there."""

    def __init__(self, server: Server) -> None:
        self._server, self._stop = server, threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=("tiny",), daemon=True) for _ in range(6)]
        self._threads.append(threading.Thread(target=self._ask, args=("no-such-model",), daemon=True))

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _ask(self, model: str) -> None:
        client = self._server.client()
        while not self._stop.wait(0.05):
            try:
                client.completions.create(
                    model=model, prompt="Return " * 40, max_tokens=60, extra_body={"ignore_eos": True}
                )
            except openai.NotFoundError:
                assert model != "tiny"


def test_the_chart_has_the_dashboards_and_alerts_of_the_code() -> None:
    for path, text in files().items():
        assert (CHART / path).read_text() == text, "run `make crds`"
    assert {path.name for path in (CHART / "dashboards").glob("*.json")} == {"quire-fleet.json", "quire-service.json"}


@pytest.mark.parametrize("dashboard", [FLEET, SERVICE], ids=lambda d: d["uid"])
def test_panels_do_not_overlap_and_stay_in_the_grid(dashboard: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
    numbers = [panel["id"] for panel in dashboard["panels"]]
    assert len(numbers) == len(set(numbers))


def test_the_dashboard_of_one_service_selects_by_equality_alone() -> None:
    expressions = [target["expr"] for panel in SERVICE["panels"] for target in panel.get("targets", ())]
    for expression in expressions:
        selectors = re.findall(r"\{([^{}]*)\}", expression)
        for selector in (s for s in selectors if "=" in s):
            assert 'namespace="$namespace"' in selector, expression
            assert re.search(r'\b(llmservice|name)="\$llmservice"', selector), expression


def test_every_dashboard_lets_the_reader_choose_the_prometheus() -> None:
    for dashboard in (FLEET, SERVICE):
        assert dashboard["templating"]["list"][0]["type"] == "datasource"
        assert json.dumps(dashboard).count('"uid": "${datasource}"') == sum(
            1 + len(panel["targets"]) for panel in dashboard["panels"] if "targets" in panel
        ) + sum("query" in variable and variable["type"] == "query" for variable in dashboard["templating"]["list"])
