"""What alerts are tried on: series with a sample for each step, and whether an alert fires on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

POD = 'namespace="default",llmservice="llama",pod="a"'
OTHER_POD = 'namespace="default",llmservice="llama",pod="b"'
OWN = 'namespace="default",name="llama"'
OPERATOR = 'namespace="quire-system"'
TTFT, TPOT = "vllm:time_to_first_token_seconds", "vllm:request_time_per_output_token_seconds"
Series = Mapping[str, str]


def requests(histogram: str, within: str, good: str, all_of_them: str) -> dict[str, str]:
    """A histogram of which only one bucket and the count matter."""
    return {f'{histogram}_bucket{{{POD},le="{within}"}}': good, f"{histogram}_count{{{POD}}}": all_of_them}


def replicas(ready: str, wanted: str) -> dict[str, str]:
    name = "quire_operator_llmservice_replicas"
    return {f'{name}{{{OWN},state="ready"}}': ready, f'{name}{{{OWN},state="wanted"}}': wanted}


def condition(kind: str, status: str, reason: str, values: str = "1x30") -> dict[str, str]:
    return {
        f'quire_operator_llmservice_condition{{{OWN},type="{kind}",status="{status}",reason="{reason}"}}': values,
    }


def stuck(running: str = "2x30", tokens: str = "100x30", steps: str = "50x30") -> dict[str, str]:
    return {
        f"vllm:num_requests_running{{{POD}}}": running,
        f"vllm:generation_tokens_total{{{POD}}}": tokens,
        f"vllm:iteration_tokens_total_count{{{POD}}}": steps,
    }


def kv_cache(usage: str, waiting: str, preemptions: str = "0x30") -> dict[str, str]:
    return {
        f"vllm:kv_cache_usage_perc{{{POD}}}": usage,
        f"vllm:num_requests_waiting{{{POD}}}": waiting,
        f"vllm:num_preemptions_total{{{POD}}}": preemptions,
    }


@dataclass(frozen=True)
class Case:
    """Series with a sample for each step, and a time at which an alert is or is not."""

    alert: str
    series: Series
    at: str
    severity: str = ".+"
    """A regular expression: silent means silent with any."""

    spec: Mapping[str, Any] = field(default_factory=dict)
    step: str = "1m"
    """Between samples, and between evaluations."""


DAY = 48  # half hours
FIRES: dict[str, Case] = {
    "a queue on all pods": Case(
        "LLMServiceQueueTooDeep",
        {f"vllm:num_requests_waiting{{{POD}}}": "25x30", f"vllm:num_requests_waiting{{{OTHER_POD}}}": "5x30"},
        "11m",
        "warning",
    ),
    "requests wait for pages": Case("LLMServiceKVCacheFull", kv_cache("0.99x30", "3x30"), "11m", "warning"),
    "requests lose their pages": Case("LLMServiceKVCacheFull", kv_cache("0.99x30", "0x30", "0+5x30"), "15m", "warning"),
    "no token and no step": Case("LLMServiceEngineStalled", stuck(), "8m", "critical"),
    "all replicas are gone": Case("LLMServiceUnavailable", replicas("1x10 0x20", "1x30"), "17m", "critical"),
    "a replica is missing": Case("LLMServiceReplicasShort", replicas("2x60", "3x60"), "41m", "warning"),
    "no access to the model": Case(
        "LLMServiceDownloadFailing", condition("Ready", "False", "ModelGated"), "6m", "warning"
    ),
    "the prefetch fails": Case(
        "LLMServiceDownloadFailing", condition("ModelCached", "False", "DownloadFailed"), "6m", "warning"
    ),
    "an image that is not there": Case(
        "LLMServiceStalled", condition("Stalled", "True", "ImagePullBackOff"), "6m", "warning"
    ),
    "first tokens fail fast": Case(
        "LLMServiceTimeToFirstTokenSLO", requests(TTFT, "2.5", "0+10x120", "0+100x120"), "90m", "critical"
    ),
    "tokens fail fast": Case(
        "LLMServiceTimePerOutputTokenSLO", requests(TPOT, "0.1", "0+10x120", "0+100x120"), "90m", "critical"
    ),
    "first tokens fail at a third for hours": Case(
        "LLMServiceTimeToFirstTokenSLO", requests(TTFT, "2.5", "0+65x420", "0+100x420"), "7h", "critical"
    ),
    "first tokens fail slowly for days": Case(
        "LLMServiceTimeToFirstTokenSLO",
        requests(TTFT, "2.5", f"0+80x{2 * DAY}", f"0+100x{2 * DAY}"),
        "47h",
        "warning",
        step="30m",
    ),
    "a budget that is burned once over": Case(
        "LLMServiceTimePerOutputTokenSLO",
        requests(TPOT, "0.1", f"0+93x{4 * DAY}", f"0+100x{4 * DAY}"),
        "95h",
        "warning",
        step="30m",
    ),
    "an objective so low that its budget cannot burn 14 times too fast": Case(
        "LLMServiceTimeToFirstTokenSLO",
        requests(TTFT, "2.5", "0x120", "0+100x120"),
        "90m",
        "critical",
        {"monitoring": {"slo": {"objective": 0.5}}},
    ),
    "no operator": Case("QuireOperatorDown", {"up": "1x30"}, "6m", "critical"),
    "an operator that went away": Case(
        "QuireOperatorDown", {f"quire_operator_leading{{{OPERATOR}}}": "1x5 stale"}, "12m", "critical"
    ),
    "nobody leads": Case(
        "QuireOperatorNotLeading",
        {f'quire_operator_leading{{{OPERATOR},pod="{pod}"}}': "0x30" for pod in "ab"},
        "6m",
        "critical",
    ),
    "reconciles fail": Case(
        "QuireOperatorReconcileErrors",
        {
            f'quire_operator_reconcile_seconds_count{{{OPERATOR},result="failed"}}': "0+2x60",
            f'quire_operator_reconcile_seconds_count{{{OPERATOR},result="unchanged"}}': "0+8x60",
        },
        "40m",
        "warning",
    ),
}

SILENT: dict[str, Case] = {
    "a short queue": Case("LLMServiceQueueTooDeep", {f"vllm:num_requests_waiting{{{POD}}}": "9x30"}, "30m"),
    "a queue that comes and goes": Case(
        "LLMServiceQueueTooDeep", {f"vllm:num_requests_waiting{{{POD}}}": "50x8 0x1 50x8 0x1 50x8"}, "24m"
    ),
    "a queue that the scaler works on": Case(
        "LLMServiceQueueTooDeep",
        {f"vllm:num_requests_waiting{{{POD}}}": "25x30"},
        "30m",
        spec={"autoscaling": {"maxReplicas": 3, "queueDepth": {"target": 20}}},
    ),
    "a cache that is full and hurts nobody": Case("LLMServiceKVCacheFull", kv_cache("0.99x30", "0x30"), "30m"),
    "requests wait for something else": Case("LLMServiceKVCacheFull", kv_cache("0.5x30", "30x30"), "30m"),
    "requests wait elsewhere": Case(
        "LLMServiceKVCacheFull",
        {**kv_cache("0.99x30", "0x30"), f"vllm:num_requests_waiting{{{OTHER_POD}}}": "9x30"},
        "30m",
    ),
    "tokens come": Case("LLMServiceEngineStalled", stuck(tokens="0+5x30"), "30m"),
    "a prompt of very many tokens": Case("LLMServiceEngineStalled", stuck(steps="0+1x30"), "30m"),
    "an idle engine": Case("LLMServiceEngineStalled", stuck(running="0x30"), "30m"),
    "a request that has just come": Case("LLMServiceEngineStalled", stuck(running="0x26 1x4"), "30m"),
    "a first start": Case("LLMServiceUnavailable", replicas("0x30", "1x30"), "30m"),
    "scaled to zero": Case("LLMServiceUnavailable", replicas("1x10 0x20", "1x10 0x20"), "30m"),
    "waking from zero": Case(
        "LLMServiceUnavailable",
        replicas("1x10 0x20", "1x10 0x5 1x15"),
        "30m",
        spec={"autoscaling": {"minReplicas": 0, "maxReplicas": 2, "triggers": [{"type": "cron"}]}},
    ),
    "waking from rest": Case(
        "LLMServiceUnavailable",
        replicas("1x10 0x20", "1x10 0x5 1x15"),
        "30m",
        spec={"autoscaling": {"idleReplicas": 0, "minReplicas": 1, "maxReplicas": 2, "triggers": [{"type": "cron"}]}},
    ),
    "one of two is gone": Case("LLMServiceUnavailable", replicas("2x10 1x20", "2x30"), "30m"),
    "a replica that starts": Case("LLMServiceReplicasShort", replicas("2x30", "3x30"), "30m"),
    "all replicas": Case("LLMServiceReplicasShort", replicas("3x60", "3x60"), "60m"),
    "a former leader that still says otherwise": Case(
        "LLMServiceReplicasShort",
        {
            **replicas("3x60", "3x60"),
            'quire_operator_llmservice_replicas{namespace="default",name="llama",state="ready",pod="old"}': "1x60",
        },
        "60m",
    ),
    "a model that is loading": Case("LLMServiceDownloadFailing", condition("Ready", "False", "Starting"), "30m"),
    "a download on its way": Case("LLMServiceDownloadFailing", condition("ModelCached", "False", "Downloading"), "30m"),
    "a rollout on its way": Case("LLMServiceStalled", condition("Reconciling", "True", "RollingOut"), "30m"),
    "a download, which has an alert of its own": Case(
        "LLMServiceStalled", condition("Stalled", "True", "NoSpaceLeft"), "30m"
    ),
    "a fault of a minute": Case(
        "LLMServiceStalled", condition("Stalled", "True", "ImagePullBackOff", "_x26 1x3"), "29m"
    ),
    "as many misses as are allowed": Case(
        "LLMServiceTimeToFirstTokenSLO", requests(TTFT, "2.5", "0+960x120", "0+1000x120"), "120m"
    ),
    "no requests": Case("LLMServiceTimeToFirstTokenSLO", requests(TTFT, "2.5", "0x120", "0x120"), "120m"),
    "a few slow requests at night": Case(
        "LLMServiceTimeToFirstTokenSLO", requests(TTFT, "2.5", "0x120", "0x60 1x9 2x9 3x9 4x9 5x20"), "100m"
    ),
    "misses that have ended": Case(
        "LLMServiceTimeToFirstTokenSLO", requests(TTFT, "2.5", "0x50 0+100x40", "0+100x90"), "88m", "critical"
    ),
    "tokens that are fast": Case(
        "LLMServiceTimePerOutputTokenSLO", requests(TPOT, "0.1", "0+100x120", "0+100x120"), "120m"
    ),
    "a threshold that was raised": Case(
        "LLMServiceTimeToFirstTokenSLO",
        {**requests(TTFT, "2.5", "0+10x120", "0+100x120"), **requests(TTFT, "5.0", "0+99x120", "0+100x120")},
        "90m",
        spec={"monitoring": {"slo": {"timeToFirstToken": "5s"}}},
    ),
    "an operator that waits and one that leads": Case(
        "QuireOperatorNotLeading",
        {
            f'quire_operator_leading{{{OPERATOR},pod="a"}}': "0x30",
            f'quire_operator_leading{{{OPERATOR},pod="b"}}': "1x30",
        },
        "30m",
    ),
    "an operator that is seen": Case("QuireOperatorDown", {f"quire_operator_leading{{{OPERATOR}}}": "0x30"}, "30m"),
    "a conflict now and then": Case(
        "QuireOperatorReconcileErrors",
        {
            f'quire_operator_reconcile_seconds_count{{{OPERATOR},result="failed"}}': "0+1x60",
            f'quire_operator_reconcile_seconds_count{{{OPERATOR},result="changed"}}': "0+30x60",
        },
        "60m",
    ),
}
