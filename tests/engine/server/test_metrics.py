"""The metrics count what was really served."""

from __future__ import annotations

import concurrent.futures
import contextlib

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.engine.server.conftest import Server, StartServer, until

OF_REQUESTS = (
    *("e2e_request_latency_seconds", "time_to_first_token_seconds", "request_prompt_tokens"),
    *("request_queue_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds"),
    *("request_inference_time_seconds", "request_max_num_generation_tokens", "request_prefill_kv_computed_tokens"),
    *("request_generation_tokens", "request_params_max_tokens", "request_time_per_output_token_seconds"),
)
LEGACY = {
    "gpu_cache_usage_perc": "kv_cache_usage_perc",
    "time_per_output_token_seconds_count": "inter_token_latency_seconds_count",
    "time_per_output_token_seconds_sum": "inter_token_latency_seconds_sum",
    "gpu_prefix_cache_queries_total": "prefix_cache_queries_total",
    "gpu_prefix_cache_hits_total": "prefix_cache_hits_total",
}
OF_ITS_OWN = ("num_requests_swapped", "cpu_cache_usage_perc", "avg_generation_throughput_toks_per_s")

TYPES = {
    "gauge": (
        *("num_requests_running", "num_requests_waiting", "num_requests_waiting_by_reason", "kv_cache_usage_perc"),
        *("engine_sleep_state", "lora_requests_info", "cache_config_info"),
    ),
    "counter": (
        *("prompt_tokens", "prompt_tokens_by_source", "prompt_tokens_cached", "generation_tokens", "request_success"),
        *("num_preemptions", "prefix_cache_queries", "prefix_cache_hits", "admission_rejections", "corrupted_requests"),
        *("external_prefix_cache_queries", "external_prefix_cache_hits", "mm_cache_queries", "mm_cache_hits"),
        *("spec_decode_num_drafts", "spec_decode_num_draft_tokens", "spec_decode_num_accepted_tokens"),
        "spec_decode_num_accepted_tokens_per_pos",
    ),
    "histogram": (
        *("time_to_first_token_seconds", "inter_token_latency_seconds", "request_time_per_output_token_seconds"),
        *("e2e_request_latency_seconds", "request_queue_time_seconds", "request_prefill_time_seconds"),
        *("request_decode_time_seconds", "request_inference_time_seconds", "request_prompt_tokens"),
        *("request_generation_tokens", "request_max_num_generation_tokens", "request_prefill_kv_computed_tokens"),
        *("request_params_n", "request_params_max_tokens", "iteration_tokens_total"),
    ),
}
"""What vLLM exposes, without its prefix, by type."""
RETIRED = {
    "gauge": (
        *("gpu_cache_usage_perc", "avg_prompt_throughput_toks_per_s", "avg_generation_throughput_toks_per_s"),
        *("num_requests_swapped", "cpu_cache_usage_perc"),
    ),
    "counter": ("gpu_prefix_cache_queries", "gpu_prefix_cache_hits"),
    "histogram": ("time_per_output_token_seconds",),
}
"""What older releases of vLLM did."""


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
    for histogram in OF_REQUESTS:
        assert server.metric(f"vllm:{histogram}_count") == 24, histogram
    parts = [server.metric(f"vllm:request_{part}_time_seconds_sum") for part in ("queue", "prefill", "decode")]
    assert min(parts) > 0
    inference = server.metric("vllm:request_inference_time_seconds_sum")
    assert inference == pytest.approx(parts[1] + parts[2])
    assert sum(parts) == pytest.approx(server.metric("vllm:e2e_request_latency_seconds_sum"))
    gaps = sum(g - 1 for _, g in usages)
    assert server.metric("vllm:inter_token_latency_seconds_count") == gaps
    hits = server.metric("vllm:prefix_cache_hits_total")
    assert hits > 0
    assert server.metric("vllm:prompt_tokens_cached_total") == hits
    assert server.metric("vllm:prompt_tokens_by_source_total", source="local_cache_hit") == hits
    assert server.metric("vllm:prompt_tokens_by_source_total") == sum(p for p, _ in usages)
    assert server.metric("vllm:request_prefill_kv_computed_tokens_sum") == sum(p for p, _ in usages) - hits
    until(lambda: server.metric("vllm:num_requests_running") == 0)
    for gauge in (
        "num_requests_waiting",
        "num_requests_waiting_by_reason",
        "kv_cache_usage_perc",
        "num_requests_swapped",
        "cpu_cache_usage_perc",
    ):
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
    assert server.metric("vllm:request_max_num_generation_tokens_count") == 2
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
    assert 'vllm:inter_token_latency_seconds_bucket{engine="0",le="0.001",model_name="tiny"}' in text
    assert server.metric("vllm:cache_config_info", block_size="16") == 1


def test_all_families_of_vllm_are_there_with_their_types_and_labels(server: Server) -> None:
    server.client().completions.create(model="tiny", prompt="Return", max_tokens=2)
    families = {f.name: f for f in text_string_to_metric_families(httpx.get(f"{server.url}/metrics").text)}
    wanted = {f"vllm:{name}": kind for types in (TYPES, RETIRED) for kind, names in types.items() for name in names}
    assert {name: families[name].type for name in wanted if name in families} == wanted
    without = {"vllm:lora_requests_info"}  # in vLLM too
    for name in wanted.keys() - without:
        for sample in families[name].samples:
            assert sample.labels.items() >= {"model_name": "tiny", "engine": "0"}.items(), sample
    assert families["http_requests"].type == "counter"
    assert families["http_request_duration_seconds"].type == "histogram"
    for name in (name for names in RETIRED.values() for name in names):
        assert families[f"vllm:{name}"].documentation.startswith("Deprecated: "), name


def test_names_of_older_releases_say_the_same_until_they_are_switched_off(
    server: Server, start_server: StartServer
) -> None:
    server.client().completions.create(model="tiny", prompt="Return", max_tokens=5)
    for old, now in LEGACY.items():
        assert server.metric(f"vllm:{old}") == server.metric(f"vllm:{now}")
    text = httpx.get(f"{server.url}/metrics").text
    assert "# HELP vllm:gpu_cache_usage_perc Deprecated: vllm:kv_cache_usage_perc has the same." in text
    assert "# TYPE vllm:time_per_output_token_seconds histogram" in text
    without = httpx.get(f"{start_server('--no-legacy-metrics').url}/metrics").text
    for name in (*LEGACY, *OF_ITS_OWN):
        assert f"vllm:{name}{{" in text
        assert f"vllm:{name}{{" not in without


def test_what_is_not_there_is_zero_and_no_gap(server: Server) -> None:
    for counter in ("spec_decode_num_drafts", "spec_decode_num_accepted_tokens", "external_prefix_cache_hits"):
        assert server.metric(f"vllm:{counter}_total") == 0
    assert server.metric("vllm:spec_decode_num_accepted_tokens_per_pos_total", position="0") == 0
    assert server.metric("vllm:engine_sleep_state", sleep_state="awake") == 1
    assert server.metric("vllm:engine_sleep_state") == 1
    assert server.metric("vllm:lora_requests_info", max_lora="0") == 0


def test_requests_that_are_turned_away_and_those_that_are_wrong_are_told_apart(start_server: StartServer) -> None:
    server = start_server("--max-waiting=1", "--max-num-seqs=1")
    body = {"model": "tiny", "prompt": "Return", "max_tokens": 1000, "ignore_eos": True, "stream": True}
    with contextlib.ExitStack() as streams:
        for _ in range(2):
            answer = streams.enter_context(httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=30))
            assert answer.status_code == 200
        assert httpx.post(f"{server.url}/v1/completions", json=body).status_code == 429
        assert server.metric("vllm:admission_rejections_total") == 1
    until(lambda: server.metric("vllm:num_requests_running") == 0)
    assert server.metric("vllm:corrupted_requests_total") == 0
    assert httpx.post(f"{server.url}/v1/completions", json={**body, "max_tokens": -1}).status_code == 400
    assert server.metric("vllm:admission_rejections_total") == 1
