"""The metrics count what was really served."""

from __future__ import annotations

import concurrent.futures
import contextlib

import httpx

from tests.engine.server.conftest import Server, StartServer, until


def test_counters_equal_the_usages_and_gauges_return_to_zero(start_server: StartServer) -> None:
    server = start_server()
    client = server.client()

    def ask(i: int) -> tuple[int, int]:
        answer = client.completions.create(
            model="tiny",
            prompt="word " * (5 + i),
            max_tokens=4 + i,
            temperature=0,
            extra_body={"ignore_eos": i % 2 == 0},
        )
        assert answer.usage is not None
        return answer.usage.prompt_tokens, answer.usage.completion_tokens

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        usages = list(pool.map(ask, range(24)))
    assert server.metric("vllm:prompt_tokens_total") == sum(p for p, _ in usages)
    assert server.metric("vllm:generation_tokens_total") == sum(g for _, g in usages)
    assert server.metric("vllm:request_success_total") == 24
    assert server.metric("vllm:request_success_total", finished_reason="abort") == 0
    for histogram in ("e2e_request_latency_seconds", "time_to_first_token_seconds", "request_prompt_tokens"):
        assert server.metric(f"vllm:{histogram}_count") == 24
    gaps = sum(g - 1 for _, g in usages)
    assert server.metric("vllm:inter_token_latency_seconds_count") == gaps
    assert server.metric("vllm:prefix_cache_hits_total") > 0
    until(lambda: server.metric("vllm:num_requests_running") == 0)
    for gauge in ("num_requests_waiting", "kv_cache_usage_perc", "num_requests_swapped", "cpu_cache_usage_perc"):
        assert server.metric(f"vllm:{gauge}") == 0
    assert server.metric("http_requests_total", handler="/v1/completions", status="2xx") == 24


def test_a_client_that_leaves_frees_its_pages(start_server: StartServer) -> None:
    server = start_server("--max-num-seqs=2", "--disable-log-stats")
    body = {"model": "tiny", "prompt": "Return", "max_tokens": 2000, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=30) as answer:
        lines = answer.iter_lines()
        next(lines)
        until(lambda: server.metric("vllm:num_requests_running") == 1)
        assert server.metric("vllm:kv_cache_usage_perc") > 0
    until(lambda: server.metric("vllm:num_requests_running") == 0, 10)
    assert server.metric("vllm:kv_cache_usage_perc") == 0
    assert server.metric("vllm:request_success_total", finished_reason="abort") == 1

    impatient = httpx.Timeout(30, read=0.5)
    with contextlib.suppress(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/completions", json={**body, "stream": False}, timeout=impatient)
    until(lambda: server.metric("vllm:request_success_total", finished_reason="abort") == 2, 10)
    until(lambda: server.metric("vllm:num_requests_running") == 0, 10)


def test_several_answers_count_as_sequences_of_one_request(start_server: StartServer) -> None:
    server = start_server()
    answer = server.client().completions.create(model="tiny", prompt=["Return", "The"], n=3, max_tokens=4)
    assert answer.usage is not None
    assert server.metric("vllm:request_success_total") == 6
    assert server.metric("vllm:prompt_tokens_total") == answer.usage.prompt_tokens
    assert server.metric("vllm:generation_tokens_total") == answer.usage.completion_tokens
    assert server.metric("vllm:request_params_n_count") == 2
    assert server.metric("vllm:request_params_n_sum") == 6


def test_names_types_and_labels_are_those_that_autoscalers_read(server: Server) -> None:
    text = httpx.get(f"{server.url}/metrics").text
    for line in (
        "# TYPE vllm:num_requests_waiting gauge",
        "# TYPE vllm:num_requests_running gauge",
        "# TYPE vllm:kv_cache_usage_perc gauge",
        "# TYPE vllm:generation_tokens_total counter",
        "# TYPE vllm:time_to_first_token_seconds histogram",
        "# TYPE vllm:request_time_per_output_token_seconds histogram",
    ):
        assert line in text
    assert 'vllm:num_requests_waiting{engine="0",model_name="tiny"}' in text
    assert server.metric("vllm:cache_config_info", block_size="16") == 1
