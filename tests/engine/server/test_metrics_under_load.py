"""Under a mixed load the metrics count what each client was told, and gauges tell what is going on."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.engine.server.conftest import Server, StartServer, until

HELLO = [{"role": "user", "content": "Hello!"}]
PROMPT = "word " * 40
POOL_BYTES = 48 * 16 * 2048  # pages of 16 tokens, of 2 kB each in the tiny model


def mixed(i: int) -> tuple[str, dict[str, Any]]:
    """The i-th request of a load in which each kind comes in turn."""
    common = {"max_tokens": 3 + i % 5, "seed": i, "stream": i % 2 == 1, "ignore_eos": i % 3 == 0}
    if common["stream"]:
        common["stream_options"] = {"include_usage": True}
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("/v1/completions", {**common, "prompt": PROMPT + "x " * i, "n": 1 + i % 2}),
        ("/v1/chat/completions", {**common, "messages": HELLO}),
        ("/v1/responses", {"input": f"Hello {i}!", "max_output_tokens": 4, "stream": common["stream"]}),
        ("/v1/completions", {**common, "prompt": [[5, 6, 7], [8, 9]], "stop": "e"}),
        ("/v1/chat/completions", {**common, "messages": HELLO, "response_format": {"type": "json_object"}}),
        ("/v1/completions", {**common, "prompt": "Hi", "temperature": 0, "stop_token_ids": [*range(1000)]}),
        (
            "/v1/completions",
            {**common, "prompt": f"Hi {i}", "max_tokens": 0, "echo": True, "logprobs": 1, "n": 2 - i % 2},
        ),
    ]
    return kinds[i % len(kinds)]


def usage_of(answer: httpx.Response) -> tuple[int, int]:
    """Prompt and completion tokens, as the client is told."""
    if answer.headers["content-type"].startswith("text/event-stream"):
        events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
        last = json.loads(events[-1])
        usage = last.get("response", last)["usage"]
    else:
        usage = answer.json()["usage"]
    names = ("input_tokens", "output_tokens") if "input_tokens" in usage else ("prompt_tokens", "completion_tokens")
    return usage[names[0]], usage[names[1]]


def sequences(path: str, body: dict[str, Any]) -> int:
    prompts = body.get("prompt")
    return body.get("n", 1) * (len(prompts) if isinstance(prompts, list) else 1)


def test_counters_equal_what_the_clients_of_a_mixed_load_were_told(start_server: StartServer) -> None:
    server = start_server("--max-num-seqs=4")
    asked = [mixed(i) for i in range(42)]

    def ask(request: tuple[str, dict[str, Any]]) -> tuple[int, int]:
        answer = httpx.post(server.url + request[0], json=request[1], timeout=120)
        assert answer.status_code == 200, answer.text
        return usage_of(answer)

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        usages = list(pool.map(ask, asked))
    wrong = httpx.post(f"{server.url}/v1/completions", json={"prompt": "a", "max_tokens": -1})
    assert wrong.status_code == 400
    until(lambda: server.metric("vllm:num_requests_running") == 0)
    finished = sum(sequences(*one) for one in asked)
    assert server.metric("vllm:prompt_tokens_total") == sum(prompt for prompt, _ in usages)
    assert server.metric("vllm:generation_tokens_total") == sum(made for _, made in usages)
    assert server.metric("vllm:request_success_total") == finished
    prompts = sum(sequences(*one) // one[1].get("n", 1) for one in asked)
    assert server.metric("vllm:request_params_n_count") == prompts
    for histogram in ("e2e_request_latency_seconds", "request_generation_tokens", "request_queue_time_seconds"):
        assert server.metric(f"vllm:{histogram}_count") == finished, histogram
    assert server.metric("vllm:request_generation_tokens_sum") == sum(made for _, made in usages)
    for gauge in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
        assert server.metric(f"vllm:{gauge}") == 0, gauge


def test_queue_and_pages_are_those_of_the_moment(start_server: StartServer) -> None:
    server = start_server("--max-num-seqs=1")
    body = {"prompt": PROMPT, "max_tokens": 1900, "ignore_eos": True, "stream": True, "return_token_ids": True}
    with contextlib.ExitStack() as streams:
        first = streams.enter_context(httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60))
        lines = (line for line in first.iter_lines() if line.startswith("data: {"))
        choice = json.loads(next(lines)[6:])["choices"][0]
        held = len(choice["prompt_token_ids"]) + len(choice["token_ids"])
        for _ in range(2):
            answer = streams.enter_context(httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60))
            assert answer.status_code == 200
        waits = figures_once(server, running=1, waiting=2)
        pages = waits["kv_cache_usage_perc"] * waits["num_blocks"]
        assert pages >= held // 16
        assert pages <= -(-(held + body["max_tokens"]) // 16) + 1
    until(lambda: server.metric("vllm:num_requests_running") == server.metric("vllm:num_requests_waiting") == 0)
    assert server.metric("vllm:kv_cache_usage_perc") == 0


def figures_once(server: Server, *, running: int, waiting: int) -> dict[str, float]:
    """The figures of the first exposition with so many requests: each belongs to the same moment."""
    names = {f"vllm:{name}": name for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")}
    seen: dict[str, float] = {}

    def come() -> bool:
        for family in text_string_to_metric_families(httpx.get(f"{server.url}/metrics").text):
            for sample in family.samples:
                if sample.name == "vllm:cache_config_info":
                    seen["num_blocks"] = max(int(sample.labels[f"num_{device}_blocks"]) for device in ("gpu", "cpu"))
                if sample.name in names:
                    seen[names[sample.name]] = sample.value
        return seen["num_requests_running"] == running and seen["num_requests_waiting"] == waiting

    until(come)
    return seen


def test_preemptions_and_prefix_hits_are_those_that_happened(start_server: StartServer) -> None:
    server = start_server(f"--kv-cache-memory-bytes={POOL_BYTES}", "--max-model-len=512", "--swap-space=0")
    body = {"prompt": PROMPT, "max_tokens": 400, "ignore_eos": True}

    def ask(fields: dict[str, Any]) -> dict[str, Any]:
        answer = httpx.post(f"{server.url}/v1/completions", json={**body, **fields}, timeout=120)
        assert answer.status_code == 200, answer.text
        usage: dict[str, Any] = answer.json()["usage"]
        return usage

    assert ask({})["completion_tokens"] == 400
    assert server.metric("vllm:num_preemptions_total") == 0, "one has room"
    before = server.metric("vllm:prefix_cache_hits_total")
    again = ask({"max_tokens": 1})
    hits = server.metric("vllm:prefix_cache_hits_total") - before
    assert hits == again["prompt_tokens_details"]["cached_tokens"] > 0
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        usages = list(pool.map(ask, [{"prompt": f"{i} {PROMPT}"} for i in range(4)]))
    assert [usage["completion_tokens"] for usage in usages] == [400] * 4
    assert server.metric("vllm:num_preemptions_total") > 0, "four have none"
    assert server.metric("vllm:generation_tokens_total") == 400 * 5 + 1, "what is computed again is not told again"
