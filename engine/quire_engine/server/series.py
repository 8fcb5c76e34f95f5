"""Series that are made of others, or that say that a feature is not there, beside those of `metrics`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from quire_engine.core.messages import EngineStats

LEGACY_NAMES = {
    "gpu_cache_usage_perc": "kv_cache_usage_perc",
    "time_per_output_token_seconds": "inter_token_latency_seconds",
    "gpu_prefix_cache_queries": "prefix_cache_queries",
    "gpu_prefix_cache_hits": "prefix_cache_hits",
}
"""Names of older releases of vLLM, which guides and dashboards still read, and what they are called now."""

_ABSENT_COUNTERS = {
    "spec_decode_num_drafts": "Speculative decoding: drafts.",
    "spec_decode_num_draft_tokens": "Speculative decoding: tokens drafted.",
    "spec_decode_num_accepted_tokens": "Speculative decoding: tokens accepted.",
    "external_prefix_cache_queries": "Prompt tokens looked up in a cache outside the engine.",
    "external_prefix_cache_hits": "Prompt tokens found in a cache outside the engine.",
    "mm_cache_queries": "Images looked up in a cache of their encodings.",
    "mm_cache_hits": "Images found in a cache of their encodings.",
}


@dataclass(frozen=True)
class Renamed(Collector):
    """Exposes a metric under another name too. Nothing is counted twice."""

    metric: Collector
    name: str
    now: str

    def collect(self) -> Iterable[Metric]:
        for family in self.metric.collect():
            old = Metric(self.name, f"Deprecated: {self.now} has the same. {family.documentation}", family.type)
            old.samples = [s._replace(name=s.name.replace(family.name, self.name, 1)) for s in family.samples]
            yield old


class LegacySeries:
    """What older releases of vLLM exposed, of `metrics`, by their names without prefix, and of their own."""

    def __init__(self, registry: CollectorRegistry, model_name: str, metrics: Mapping[str, Collector]) -> None:
        for old, now in LEGACY_NAMES.items():
            registry.register(Renamed(metrics[now], f"vllm:{old}", f"vllm:{now}"))

        def gauge(name: str, text: str) -> Gauge:
            made = Gauge(f"vllm:{name}", f"Deprecated: {text}", ("model_name", "engine"), registry=registry)
            return made.labels(model_name, "0")

        self._swapped = gauge("num_requests_swapped", "waiting requests that keep their pages in host memory.")
        self._swap_usage = gauge("cpu_cache_usage_perc", "share of the pages of --swap-space in use, 0 to 1.")
        rate = "over the last 10 s; use rate() of the counter."
        self._prompt_rate = gauge("avg_prompt_throughput_toks_per_s", f"prompt tokens a second {rate}")
        self._generation_rate = gauge("avg_generation_throughput_toks_per_s", f"generated tokens a second {rate}")

    def observe_stats(self, stats: EngineStats) -> None:
        """Follow a snapshot of the engine."""
        self._swapped.set(stats.num_swapped)
        self._swap_usage.set(stats.swap_usage)

    def observe_rates(self, prompt_tokens: float, generation_tokens: float) -> None:
        """Tokens a second of late."""
        self._prompt_rate.set(prompt_tokens)
        self._generation_rate.set(generation_tokens)


class AdapterSeries:
    """Which adapters requests run with and wait for: labels, on the time of the last step, as vLLM has it."""

    def __init__(self, registry: CollectorRegistry, max_loras: int) -> None:
        names = ("max_lora", "running_lora_adapters", "waiting_lora_adapters")
        self._max_loras = max_loras
        self._info = Gauge("vllm:lora_requests_info", "Adapters in use.", names, registry=registry)
        self._info.labels(str(max_loras), "", "")

    def observe_stats(self, stats: EngineStats) -> None:
        """Follow a snapshot of the engine. There is one series at a time."""
        if self._max_loras:
            running, waiting = ",".join(stats.running_adapters), ",".join(stats.waiting_adapters)
            self._info.clear()
            self._info.labels(str(self._max_loras), running, waiting).set_to_current_time()


def add_absent(registry: CollectorRegistry, model_name: str) -> None:
    """Expose what dashboards of vLLM ask for and this engine has nothing to say of: 0, and not a gap."""
    labels = ("model_name", "engine")
    by_position = Counter(
        "vllm:spec_decode_num_accepted_tokens_per_pos",
        "Speculative decoding: tokens accepted, by their place in the draft. Always 0.",
        (*labels, "position"),
        registry=registry,
    )
    by_position.labels(model_name, "0", "0")
    for name, text in _ABSENT_COUNTERS.items():
        Counter(f"vllm:{name}", f"{text} Always 0.", labels, registry=registry).labels(model_name, "0")
    sleeping = Gauge(
        "vllm:engine_sleep_state", "1 for the state that holds.", (*labels, "sleep_state"), registry=registry
    )
    for state in ("awake", "weights_offloaded", "discard_all"):
        sleeping.labels(model_name, "0", state).set(state == "awake")
