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
leading = Gauge("quire_operator_leading", "1 while this replica holds the Lease.")
services = Gauge(
    "quire_operator_llmservices", "LLMServices by the state of their Ready condition.", ["ready", "reason"]
)
