"""How long requests are, learned of a real Prometheus, and what is advised."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from quire_operator.kubeapi.reflector import Key
from quire_operator.kubeapi.resources import LLMSERVICES
from quire_operator.run.request_lengths import RequestLengths
from tests.operator.api_client import ApiClient, Namespace, eventually
from tests.operator.conftest import StartOperator, program
from tests.operator.operator_process import OperatorProcess
from tests.operator.prometheus import PrometheusProcess
from tests.operator.services import manifest

pytestmark = pytest.mark.control_plane  # which is where programs are built

BOUNDS = ("100", "200", "500", "1000", "+Inf")


def histogram(name: str, *counts: int) -> str:
    """Requests so far of each of BOUNDS and those below it."""
    lines = [f'{name}_bucket{{le="{bound}"}} {count}' for bound, count in zip(BOUNDS, counts, strict=True)]
    return "\n".join([*lines, f"{name}_count {counts[-1]}", f"{name}_sum 1", ""])


def exposed(prompts: tuple[int, ...], answers: tuple[int, ...]) -> str:
    return histogram("vllm:request_prompt_tokens", *prompts) + histogram("vllm:request_generation_tokens", *answers)


PODS = {
    # two pods of one service: the longest prompt in one, the longest answer in the other
    "chat": [
        exposed((900, 900, 900, 900, 900), (10, 900, 900, 900, 900)),
        exposed((10, 10, 700, 700, 700), (700, 700, 700, 700, 700)),
    ],
    "new": [exposed((999, 999, 999, 999, 999), (999, 999, 999, 999, 999))],
    "idle": [exposed((0, 0, 0, 0, 0), (0, 0, 0, 0, 0))],
    "beyond": [exposed((10, 10, 10, 10, 2000), (2000, 2000, 2000, 2000, 2000))],
}


@contextlib.contextmanager
def serving(text_of: Callable[[str], str]) -> Iterator[int]:
    """A port that answers any request with what its path gives."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(200)
            self.send_header("Content-Type", "application/json" if self.command == "POST" else "text/plain")
            self.end_headers()
            self.wfile.write(text_of(self.path).encode())

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusProcess]:
    """It scrapes PODS, as those of services in the namespace `lengths`."""

    def of_pod(path: str) -> str:
        _, service, number = path.split("/")
        return PODS[service][int(number)]

    with serving(of_pod) as port:
        yield from scraping(port, tmp_path_factory.mktemp("prometheus"))


def scraping(port: int, folder: Path) -> Iterator[PrometheusProcess]:
    targets = [
        {
            "job_name": f"{service}-{number}",
            "metrics_path": f"/{service}/{number}",
            "static_configs": [
                {
                    "targets": [f"127.0.0.1:{port}"],
                    "labels": {"namespace": "lengths", "llmservice": service, "pod": f"{service}-{number}"},
                }
            ],
        }
        for service, pods in PODS.items()
        for number in range(len(pods))
    ]
    process = PrometheusProcess(program("prometheus") / "prometheus", folder, targets, [])
    eventually(lambda: [value for _, value in process.query("sum(up)")] == [len(targets)])
    yield process
    process.stop()


def asked(*addresses: str, name: str = "chat") -> tuple[int | None, list[Key], list[bool]]:
    """What is known of a service after asking each address in turn, whom it changed, and who answered."""
    changed: list[Key] = []
    lengths = RequestLengths(addresses[0], changed.append)

    async def ask() -> list[bool]:
        async with aiohttp.ClientSession() as session:
            answered = []
            for lengths._address in addresses:
                answered.append(await lengths.ask(session))
            return answered

    answered = asyncio.run(ask())
    return lengths.of(("lengths", name)), changed, answered


def test_the_longest_prompt_and_the_longest_answer_of_all_pods_add_up(prometheus: PrometheusProcess) -> None:
    longest, changed, _ = asked(prometheus.address)
    assert longest == 500 + 200
    assert sorted(changed) == [("lengths", "beyond"), ("lengths", "chat")]


def test_who_has_answered_few_is_told_nothing(prometheus: PrometheusProcess) -> None:
    assert asked(prometheus.address, name="new")[0] == 0
    assert asked(prometheus.address, name="idle")[0] == 0
    assert asked(prometheus.address, name="nowhere")[0] == 0


def test_what_is_beyond_the_last_bound_counts_as_that(prometheus: PrometheusProcess) -> None:
    assert asked(prometheus.address, name="beyond")[0] == 1000 + 100


def test_what_was_learned_stays_while_there_is_no_answer_and_wakes_nobody_twice(prometheus: PrometheusProcess) -> None:
    longest, changed, answered = asked(prometheus.address, "http://127.0.0.1:1", prometheus.address)
    assert (longest, answered) == (700, [True, False, True])
    assert len(changed) == 2


@pytest.mark.parametrize(
    ("body", "was_answered"),
    [
        ("no JSON", False),
        ("[]", False),
        ('{"data": {"result": [{"metric": {}, "value": []}]}}', False),
        ('{"data": {"result": [{"metric": {"llmservice": "chat"}, "value": [0, "700"]}]}}', True),
        (
            '{"data": {"result": [{"metric": {"llmservice": "chat", "namespace": "lengths"}, "value": [0, "NaN"]}]}}',
            True,
        ),
    ],
)
def test_an_answer_of_something_else_tells_nothing(body: str, was_answered: bool) -> None:
    with serving(lambda path: body) as port:
        longest, changed, answered = asked(f"http://127.0.0.1:{port}")
    assert (longest or 0, changed, answered) == (0, [], [was_answered])


def test_before_the_first_answer_nothing_is_known() -> None:
    assert asked("http://127.0.0.1:1")[0] is None
    assert RequestLengths("", print).of(("lengths", "chat")) == 0


def test_an_operator_that_is_told_of_prometheus_advises_and_says_it_once(
    api: ApiClient, prometheus: PrometheusProcess, start_operator: StartOperator
) -> None:
    api.make_namespace("lengths")
    theirs = Namespace(api, "lengths")
    theirs.create(manifest("chat", model={"maxModelLen": 4096}, replicas=2))

    def start(address: str) -> OperatorProcess:
        own = ("--namespace=lengths", "--lease-namespace=lengths")
        return start_operator(*own, f"--prometheus-address={address}", user="admin")

    def advice() -> list[str]:
        return [advice["reason"] for advice in theirs.status("chat").get("advice", [])]

    first = start(prometheus.address)
    eventually(lambda: advice() == ["UnusedLength"], 60)
    first.stop()
    version = theirs.get(LLMSERVICES, "chat")["metadata"]["resourceVersion"]
    second = start("http://127.0.0.1:1")
    second.wait_until_leading()
    second.wait_until_idle()
    assert second.says("cannot be learned")
    assert theirs.get(LLMSERVICES, "chat")["metadata"]["resourceVersion"] == version
