"""The operator's own metrics."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

reconciles = Histogram(
    "quire_operator_reconcile_seconds",
    "Time of one reconcile, by how it ended: unchanged, changed, waiting, refused, gone or failed.",
    ["result"],
    buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
api_calls = Counter(
    "quire_operator_api_calls_total",
    "Calls to the Kubernetes API, without those of the watch of LLMServices.",
    ["verb", "resource", "code"],
)
watch_restarts = Counter("quire_operator_watch_restarts_total", "Watches that broke and were begun anew.", ["resource"])
queue_depth = Gauge("quire_operator_queue_depth", "LLMServices that are due to be reconciled.")
queue_running = Gauge("quire_operator_queue_running", "LLMServices that are being reconciled.")
queue_retries = Counter("quire_operator_queue_retries_total", "Reconciles that failed and were put off.")
leading = Gauge("quire_operator_leading", "1 while this replica works, and does not wait for the Lease.")
services = Gauge(
    "quire_operator_llmservices", "LLMServices by the state of their Ready condition.", ["ready", "reason"]
)
replicas = Gauge(
    "quire_operator_llmservice_replicas",
    "Replicas of an LLMService that are wanted, and that serve.",
    ["namespace", "name", "state"],
)
conditions = Gauge(
    "quire_operator_llmservice_condition",
    "1 for each condition of an LLMService as it is now.",
    ["namespace", "name", "type", "status", "reason"],
)
gpus = Gauge(
    "quire_operator_llmservice_gpus",
    "GPUs that the pods of an LLMService hold or ask for.",
    ["namespace", "name", "product"],
)
gpu_hourly_price = Gauge(
    "quire_operator_gpu_hourly_price",
    "What an hour of a GPU costs, by the operator's settings; 0 where they say nothing.",
    ["product"],
)
