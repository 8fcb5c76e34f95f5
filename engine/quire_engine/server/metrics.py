"""What Prometheus scrapes, under vLLM's names and labels, so that autoscalers and dashboards can stay as they are."""

from __future__ import annotations

from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.registry import Collector

from quire_engine.core.messages import EngineInfo, EngineOutput, EngineStats
from quire_engine.sampling_params import SamplingParams
from quire_engine.server.histogram import PlainHistogram
from quire_engine.server.series import AdapterSeries, LegacySeries, add_absent
from quire_engine.wire import StepDone

LABELS = ("model_name", "engine")
FIRST_TOKEN_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0),
)
# vLLM's begin at 10 ms, which is above what a current GPU takes.
TOKEN_BUCKETS = (
    *(0.001, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0),
)
REQUEST_BUCKETS = (0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0, 120.0, 480.0)
COUNT_BUCKETS = tuple(float(m * 10**e) for e in range(6) for m in (1, 2, 5))
FEW_BUCKETS = (1.0, 2.0, 5.0, 10.0, 20.0)


@dataclass
class Answers:
    """What is shared by the sequences that answer one prompt."""

    left: int
    longest: int = 0  # tokens, of those that ended


@dataclass
class RequestTimes:
    """When what happened to one sequence, by time.monotonic()."""

    arrival: float
    num_prompt_tokens: int
    params: SamplingParams
    first_of_prompt: bool = True  # the prompt's tokens count once
    counts_tokens: bool = True  # else no answer was asked for, and the token that the engine makes is nobody's
    answers: Answers = field(default_factory=lambda: Answers(1))
    started: float | None = None  # when the engine first had it in a step
    num_cached: int = 0
    first_token: float | None = None
    last_token: float | None = None
    num_generated: int = 0


class Metrics:
    """All series of one server. Gauges and engine counters follow the engine's snapshots."""

    def __init__(self, model_name: str, *, legacy: bool = True, max_loras: int = 0) -> None:
        self.registry = CollectorRegistry()
        self._model_name = model_name
        self._named: dict[str, Collector] = {}
        self._last = EngineStats()
        self._num_prompt_tokens = self._num_generation_tokens = 0
        self._num_exposed = 0  # of the generated tokens: the counter follows when it is looked at

        self.running = self._gauge("num_requests_running", "Requests that the engine is working on.")
        self.waiting = self._gauge("num_requests_waiting", "Requests that wait for a place in the engine.")
        self._waiting_by_reason = Gauge(
            "vllm:num_requests_waiting_by_reason",
            "Requests that wait: for room in the engine, or, deferred, for their images or their answer's grammar.",
            (*LABELS, "reason"),
            registry=self.registry,
        )
        self.kv_usage = self._gauge("kv_cache_usage_perc", "Share of the KV cache's pages in use, 0 to 1.")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of the prompts whose answers began.")
        self.cached_tokens = self._counter("prompt_tokens_cached", "Of these, tokens from the prefix cache.")
        self._by_source = Counter(
            "vllm:prompt_tokens_by_source",
            "Tokens of the prompts whose answers began, by where their part of the KV cache came from.",
            (*LABELS, "source"),
            registry=self.registry,
        )
        self.generation_tokens = self._counter("generation_tokens", "Tokens generated.")
        self.preemptions = self._counter("num_preemptions", "Times that a request gave up its pages to another.")
        self.rejections = self._counter("admission_rejections", "Requests turned away because too many wait.")
        self.corrupted = self._counter(
            "corrupted_requests", "Requests that the engine failed at, as at logits that are not finite."
        )
        self.prefix_queries = self._counter("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.")
        self.prefix_hits = self._counter("prefix_cache_hits", "Prompt tokens found in the prefix cache.")
        self.success = Counter(
            "vllm:request_success",
            "Sequences that ended, by why.",
            (*LABELS, "finished_reason"),
            registry=self.registry,
        )
        for reason in ("stop", "length", "abort", "error"):
            self.success.labels(model_name, "0", reason)
        seconds = self._histogram
        self.first_token_seconds = seconds(
            "time_to_first_token_seconds", "From arrival to the first token.", FIRST_TOKEN_BUCKETS
        )
        self.inter_token_seconds = self._named["inter_token_latency_seconds"] = PlainHistogram(
            "vllm:inter_token_latency_seconds",
            "Between one token and the next.",
            dict(zip(LABELS, (model_name, "0"), strict=True)),
            TOKEN_BUCKETS,
            self.registry,
        )
        self.token_seconds = seconds(
            "request_time_per_output_token_seconds", "A request's mean time per token after the first.", TOKEN_BUCKETS
        )
        self.request_seconds = seconds(
            "e2e_request_latency_seconds", "From arrival to the last token.", REQUEST_BUCKETS
        )
        self.queue_seconds = seconds(
            "request_queue_time_seconds", "From arrival to the first step with a part of it.", REQUEST_BUCKETS
        )
        self.prefill_seconds = seconds(
            "request_prefill_time_seconds", "From the first step to the first token.", REQUEST_BUCKETS
        )
        self.decode_seconds = seconds(
            "request_decode_time_seconds", "From the first token to the last.", REQUEST_BUCKETS
        )
        self.inference_seconds = seconds(
            "request_inference_time_seconds", "From the first step to the last token.", REQUEST_BUCKETS
        )
        self.request_prompt_tokens = seconds("request_prompt_tokens", "Prompt tokens of a request.", COUNT_BUCKETS)
        self.request_generation_tokens = seconds(
            "request_generation_tokens", "Generated tokens of a request.", COUNT_BUCKETS
        )
        self.request_computed_tokens = seconds(
            "request_prefill_kv_computed_tokens", "Prompt tokens of a request that were not cached.", COUNT_BUCKETS
        )
        self.longest_answer = seconds(
            "request_max_num_generation_tokens", "Generated tokens of a request's longest answer.", COUNT_BUCKETS
        )
        self.params_n = seconds("request_params_n", "The n of a request.", FEW_BUCKETS)
        self.params_max_tokens = seconds("request_params_max_tokens", "The max_tokens of a request.", COUNT_BUCKETS)
        self.iteration_tokens = seconds("iteration_tokens_total", "Tokens computed in a step.", COUNT_BUCKETS)
        self.http_requests = Counter(
            "http_requests", "HTTP answers.", ("handler", "method", "status"), registry=self.registry
        )
        self.http_seconds = Histogram(
            "http_request_duration_seconds",
            "From a request's head to its answer's end.",
            ("handler", "method"),
            registry=self.registry,
            buckets=REQUEST_BUCKETS,
        )

        add_absent(self.registry, model_name)
        self._adapters = AdapterSeries(self.registry, max_loras)
        self._legacy = LegacySeries(self.registry, model_name, self._named) if legacy else None

    def exposition(self) -> bytes:
        self.generation_tokens.inc(self._num_generation_tokens - self._num_exposed)
        self._num_exposed = self._num_generation_tokens
        return generate_latest(self.registry)

    def set_info(self, info: EngineInfo) -> None:
        labels = {
            "engine": "0",
            "model_name": self._model_name,
            "block_size": str(info.block_size),
            "num_gpu_blocks": str(info.num_blocks if info.device != "cpu" else 0),
            "num_cpu_blocks": str(info.num_blocks if info.device == "cpu" else info.num_swap_blocks),
            "cache_dtype": info.dtype,
        }
        gauge = Gauge("vllm:cache_config_info", "How the KV cache is laid out.", tuple(labels), registry=self.registry)
        gauge.labels(**labels).set(1)

    def observe_stats(self, stats: EngineStats) -> None:
        """Follow a snapshot; counters advance by what is new in it."""
        self.running.set(stats.num_running)
        self.waiting.set(stats.num_waiting)
        self.kv_usage.set(stats.kv_cache_usage)
        self._adapters.observe_stats(stats)
        for reason, number in (("capacity", stats.num_waiting - stats.num_deferred), ("deferred", stats.num_deferred)):
            self._waiting_by_reason.labels(self._model_name, "0", reason).set(number)
        if self._legacy is not None:
            self._legacy.observe_stats(stats)
        self.preemptions.inc(stats.num_preemptions - self._last.num_preemptions)
        self.prefix_queries.inc(stats.prefix_cache_queries - self._last.prefix_cache_queries)
        self.prefix_hits.inc(stats.prefix_cache_hits - self._last.prefix_cache_hits)
        self._last = stats

    def observe_step(self, step: StepDone) -> None:
        self.observe_stats(step.stats)
        if step.stats.num_scheduled_tokens:
            self.iteration_tokens.observe(step.stats.num_scheduled_tokens)

    def token_totals(self) -> tuple[int, int]:
        """Prompt and generated tokens so far."""
        return self._num_prompt_tokens, self._num_generation_tokens

    def observe_rates(self, prompt_tokens: float, generation_tokens: float) -> None:
        """Tokens a second of late."""
        if self._legacy is not None:
            self._legacy.observe_rates(prompt_tokens, generation_tokens)

    def observe_output(self, times: RequestTimes, output: EngineOutput) -> None:
        """What the engine tells with a sequence's first output."""
        if output.started_at is not None and times.started is None:
            times.started, times.num_cached = output.started_at, output.num_cached_tokens

    def observe_refused(self, output: EngineOutput) -> None:
        """The engine could not go on with a sequence."""
        if output.error_kind == "fault":
            self.corrupted.inc()

    def observe_tokens(self, times: RequestTimes, count: int, now: float) -> None:
        """`count` tokens of one sequence have come at `now`."""
        if count == 0:
            return
        if not times.counts_tokens:
            self._observe_prompt_alone(times, now)
            return
        self._num_generation_tokens += count
        times.num_generated += count
        if times.first_token is None:
            times.first_token = now
            if times.first_of_prompt:
                self._count_prompt(times)
            self.first_token_seconds.observe(now - times.arrival)
            count -= 1
        elif times.last_token is not None:
            self.inter_token_seconds.observe((now - times.last_token) / count)
            count -= 1
        for _ in range(count):  # tokens of the same step came together
            self.inter_token_seconds.observe(0.0)
        times.last_token = now

    def observe_embedded(self, times: RequestTimes, now: float) -> None:
        """A prompt's vector has come."""
        self._observe_prompt_alone(times, now)
        self.observe_finished(times, "stop", now)

    def observe_submitted(self, params: SamplingParams) -> None:
        """A prompt goes to the engine, for `params.n` sequences."""
        self.params_n.observe(params.n)

    def observe_finished(self, times: RequestTimes, reason: str, now: float) -> None:
        self.success.labels(self._model_name, "0", reason).inc()
        self.request_seconds.observe(now - times.arrival)
        self.request_prompt_tokens.observe(times.num_prompt_tokens)
        self.request_generation_tokens.observe(times.num_generated)
        self.request_computed_tokens.observe(times.num_prompt_tokens - times.num_cached)
        times.answers.left -= 1
        times.answers.longest = max(times.answers.longest, times.num_generated)
        if times.answers.left == 0:
            self.longest_answer.observe(times.answers.longest)
        self._observe_parts(times)
        if times.params.max_tokens is not None:
            self.params_max_tokens.observe(times.params.max_tokens)
        if times.num_generated > 1 and times.first_token is not None and times.last_token is not None:
            self.token_seconds.observe((times.last_token - times.first_token) / (times.num_generated - 1))

    def observe_http(self, handler: str, method: str, status: int, seconds: float) -> None:
        self.http_requests.labels(handler, method, f"{status // 100}xx").inc()
        self.http_seconds.labels(handler, method).observe(seconds)

    def _observe_prompt_alone(self, times: RequestTimes, now: float) -> None:
        """All of a prompt is computed, and nothing was wanted of it but that."""
        if times.first_of_prompt:
            self._count_prompt(times)
        times.first_token = times.last_token = now

    def _observe_parts(self, times: RequestTimes) -> None:
        if times.started is None:
            return
        self.queue_seconds.observe(times.started - times.arrival)
        if times.first_token is not None and times.last_token is not None:
            self.prefill_seconds.observe(times.first_token - times.started)
            self.decode_seconds.observe(times.last_token - times.first_token)
            self.inference_seconds.observe(times.last_token - times.started)

    def _count_prompt(self, times: RequestTimes) -> None:
        self.prompt_tokens.inc(times.num_prompt_tokens)
        self.cached_tokens.inc(times.num_cached)
        computed = times.num_prompt_tokens - times.num_cached
        for source, number in (("local_compute", computed), ("local_cache_hit", times.num_cached)):
            self._by_source.labels(self._model_name, "0", source).inc(number)
        self._num_prompt_tokens += times.num_prompt_tokens

    def _gauge(self, name: str, text: str) -> Gauge:
        self._named[name] = made = Gauge(f"vllm:{name}", text, LABELS, registry=self.registry)
        return made.labels(self._model_name, "0")

    def _counter(self, name: str, text: str) -> Counter:
        self._named[name] = made = Counter(f"vllm:{name}", text, LABELS, registry=self.registry)
        return made.labels(self._model_name, "0")

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        self._named[name] = made = Histogram(f"vllm:{name}", text, LABELS, registry=self.registry, buckets=buckets)
        return made.labels(self._model_name, "0")
