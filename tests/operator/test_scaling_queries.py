"""The queries of autoscaling, answered by a real Prometheus that scrapes pods of the test's own."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from quire_operator.api import LLMService
from quire_operator.api.autoscaling import Latency
from quire_operator.builders.scaling_queries import latency_milliseconds, requests, waiting_requests
from tests.operator.api_client import eventually
from tests.operator.conftest import program
from tests.operator.prometheus import PrometheusProcess
from tests.operator.services import service

pytestmark = pytest.mark.control_plane  # which is where programs are built

LATENCY = Latency.model_validate({"metric": "timePerOutputToken", "quantile": 0.9, "target": "60ms"})
BUCKETS = ("0.05", "0.1", "+Inf")
ALL = ("monitor", "annotations")


def gauges(waiting: float, running: float, engine: str = "0") -> str:
    labels = f'{{model_name="llama",engine="{engine}"}}'
    return f"vllm:num_requests_waiting{labels} {waiting}\nvllm:num_requests_running{labels} {running}\n"


def histogram(*counts: float) -> str:
    """Requests so far of each of BUCKETS and those below it."""
    name = "vllm:request_time_per_output_token_seconds"
    lines = [f'{name}_bucket{{le="{le}"}} {count}' for le, count in zip(BUCKETS, counts, strict=True)]
    return "\n".join([*lines, f"{name}_count {counts[-1]}", f"{name}_sum 1", ""])


class Pods:
    """What each pod exposes; one that exposes nothing answers 500."""

    def __init__(self) -> None:
        self.metrics: dict[str, str] = {}
        self.growing: set[str] = set()
        """Pods that have answered 100 requests more each time they are scraped, all of them in 50 to 100 ms."""
        self._answered = 0
        pods = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                text = pods._text(self.path.rpartition("/")[2])
                self.send_response(200 if text else 500)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def target(self, namespace: str, pod: str, llmservice: str, job: str) -> dict[str, Any]:
        """How `job` scrapes the pod: a ServiceMonitor names the LLMService, annotations do not."""
        labels = {"namespace": namespace, "pod": pod, "instance": f"{pod}:8000"}
        if job == "monitor":
            labels["llmservice"] = llmservice
        return {
            "job_name": f"{job}/{namespace}/{pod}",
            "metrics_path": f"/{namespace}/{pod}",
            "static_configs": [{"targets": [f"127.0.0.1:{self.server.server_port}"], "labels": labels}],
        }

    def _text(self, pod: str) -> str:
        if pod in self.growing:
            self._answered += 100
            return gauges(0, 1) + histogram(0, self._answered, self._answered)
        return self.metrics.get(pod, "")


NAMES = [f"llama-6d4b75cb6d-x7k2{suffix}" for suffix in "bcdf"]
SECOND = "llama-2-7c9d8b6f5b-aaaaa"
LONG = "a" * 50


@pytest.fixture(scope="module")
def pods() -> Iterator[Pods]:
    pods = Pods()
    pods.metrics = {name: gauges(6, 2) for name in NAMES}
    pods.metrics |= {
        "llama-6d4b75cb6d-idle0": gauges(0, 0) + histogram(5, 9, 9),
        "llama-6d4b75cb6d-ranks": gauges(3, 1) + gauges(4, 1, engine="1"),
        SECOND: gauges(100, 100),
        "llama-agent-x7k2b": gauges(1000, 1000),
        f"{LONG}-6d4b75cx7k2b": gauges(8, 1),
    }
    pods.growing = {"llama-6d4b75cb6d-slow0"}
    yield pods
    pods.server.shutdown()
    pods.server.server_close()


@pytest.fixture(scope="module")
def prometheus(pods: Pods, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusProcess]:
    strangers = [("crowd", SECOND, "llama-2"), ("crowd", "llama-agent-x7k2b", "agent")]
    scraped = [
        *[("busy", name, "llama", job) for name in NAMES for job in ALL],
        *[("monitored", name, "llama", "monitor") for name in NAMES],
        *[("annotated", name, "llama", "annotations") for name in NAMES],
        *[("crowd", NAMES[0], "llama", job) for job in ALL],
        *[(namespace, pod, owner, job) for namespace, pod, owner in strangers for job in ALL],
        ("ranks", "llama-6d4b75cb6d-ranks", "llama", "monitor"),
        ("idle", "llama-6d4b75cb6d-idle0", "llama", "monitor"),
        *[("slow", "llama-6d4b75cb6d-slow0", "llama", job) for job in ALL],
        ("lost", "llama-6d4b75cb6d-lost0", "llama", "monitor"),
        *[("mixed", name, "llama", "monitor") for name in (*NAMES[:2], "llama-6d4b75cb6d-lost0")],
        ("long", f"{LONG}-6d4b75cx7k2b", LONG, "annotations"),
    ]
    targets = [_in_one_job(job, pods.target(*place, job)) for *place, job in scraped]
    process = PrometheusProcess(
        program("prometheus") / "prometheus", tmp_path_factory.mktemp("prometheus"), targets, []
    )
    yield process
    process.stop()


def _in_one_job(job: str, target: dict[str, Any]) -> dict[str, Any]:
    """Pods of one service share a job; a scrape config each has a name of its own, and says it otherwise."""
    return {**target, "relabel_configs": [{"target_label": "job", "replacement": job}]}


def of(namespace: str, name: str = "llama", *, least: int = 1) -> LLMService:
    found = service(name, autoscaling={"minReplicas": least, "maxReplicas": 9, "triggers": [{"type": "cron"}]})
    return found.model_copy(update={"metadata": found.metadata.model_copy(update={"namespace": namespace})})


def value(prometheus: PrometheusProcess, query: str | None) -> float | None:
    """What KEDA would read: one number, or nothing, which is an error to it."""
    assert query is not None
    samples = prometheus.query(query)
    assert len(samples) <= 1
    return samples[0][1] if samples else None


def waiting(prometheus: PrometheusProcess, found: LLMService, expected: float) -> None:
    eventually(lambda: value(prometheus, waiting_requests(found)) == expected)


@pytest.mark.parametrize("namespace", ["busy", "monitored", "annotated"])
def test_four_busy_replicas_do_not_shrink_however_they_are_scraped(
    prometheus: PrometheusProcess, namespace: str
) -> None:
    waiting(prometheus, of(namespace), 4 * 6)
    # as the HorizontalPodAutoscaler computes an AverageValue
    assert math.ceil(24 / 5) > 4


def test_another_services_pods_are_not_seen_though_its_name_begins_alike(prometheus: PrometheusProcess) -> None:
    waiting(prometheus, of("crowd", "llama-2"), 100)
    waiting(prometheus, of("crowd"), 6)


def test_ranks_of_one_pod_are_added_up(prometheus: PrometheusProcess) -> None:
    waiting(prometheus, of("ranks"), 3 + 4)


def test_a_name_that_is_cut_off_in_its_pods_is_known_again(prometheus: PrometheusProcess) -> None:
    waiting(prometheus, of("long", LONG), 8)


def test_latency_is_the_quantile_over_all_pods_in_milliseconds(prometheus: PrometheusProcess) -> None:
    # all between 50 and 100 ms, where a quantile is interpolated
    eventually(lambda: value(prometheus, latency_milliseconds(of("slow"), LATENCY)) == pytest.approx(95))


def test_an_idle_service_has_a_latency_of_zero_and_not_of_nan(prometheus: PrometheusProcess) -> None:
    raw = 'histogram_quantile(0.9, rate(vllm:request_time_per_output_token_seconds_bucket{namespace="idle"}[2m]))'
    eventually(lambda: math.isnan(value(prometheus, raw) or 0))
    assert value(prometheus, latency_milliseconds(of("idle"), LATENCY)) == 0


@pytest.mark.parametrize("least", [0, 1])
def test_pods_that_cannot_be_read_are_no_zero(prometheus: PrometheusProcess, least: int) -> None:
    eventually(lambda: value(prometheus, 'up{namespace="lost"}') == 0)
    lost = of("lost", least=least)
    for query in (waiting_requests(lost), requests(lost), latency_milliseconds(lost, LATENCY)):
        assert value(prometheus, query) is None


def test_a_pod_that_cannot_be_read_does_not_hide_what_waits_at_the_others(prometheus: PrometheusProcess) -> None:
    eventually(lambda: value(prometheus, 'sum(up{namespace="mixed"})') == 2)
    waiting(prometheus, of("mixed"), 2 * 6)


def test_without_a_pod_what_may_sleep_is_at_zero_and_what_may_not_is_an_error(prometheus: PrometheusProcess) -> None:
    for least, expected in ((0, 0.0), (1, None)):
        nobody = of("nowhere", least=least)
        for query in (waiting_requests(nobody), requests(nobody), latency_milliseconds(nobody, LATENCY)):
            assert value(prometheus, query) == expected


def test_a_service_that_may_sleep_reads_the_same_numbers_while_it_is_awake(prometheus: PrometheusProcess) -> None:
    waiting(prometheus, of("busy", least=0), 24)
    assert value(prometheus, requests(of("busy", least=0))) == 4 * (6 + 2)
    eventually(lambda: value(prometheus, latency_milliseconds(of("slow", least=0), LATENCY)) == pytest.approx(95))
