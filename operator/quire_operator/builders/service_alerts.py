"""The alerts of one LLMService."""

from __future__ import annotations

from collections.abc import Sequence

from quire_operator.api import LLMService
from quire_operator.api.duration import parse_duration
from quire_operator.builders.engines import Metrics, engine_of
from quire_operator.monitoring.burn_rate import FAST, SLOW, Burn, Objective, windows_of
from quire_operator.monitoring.promql import duration, equal
from quire_operator.monitoring.rule import Alert, Group, Recording, Severity

DOWNLOAD_REASONS = (
    "CacheFull",
    "CacheNotWritable",
    "ChecksumMismatch",
    "DownloadFailed",
    "HubUnreachable",
    "ModelGated",
    "ModelNotCached",
    "ModelNotFound",
    "NoSpaceLeft",
    "RevisionNotFound",
)
"""Reasons of a condition that say that the weights do not come."""

_SLOW_INTERVAL = "5m"
"""Windows of days need not be read every few seconds."""

_PULLING_SECONDS = 600
"""For scheduling and pulling the image, beside what the engine takes to start."""


def service_groups(service: LLMService) -> list[Group]:
    """All rules of one LLMService. Each alert bears its namespace and name, `llmservice`.

    What an engine does not measure is left out.
    """
    metrics, objectives = engine_of(service).metrics, _objectives(service)
    of_engine = (_queue_too_deep(service, metrics), _kv_cache_full(service, metrics), _engine_stalled(service, metrics))
    found = [alert for alert in of_engine if alert is not None]
    groups = [Group(name="llmservice", rules=[*found, *_replicas(service), *_conditions(service)])]
    if not objectives:
        return groups
    soon = windows_of(FAST)
    late = [window for window in windows_of(SLOW) if window not in soon]  # no series is recorded twice
    return [
        *groups,
        Group(name="llmservice-slo", rules=_budgets(service, objectives, FAST, soon, "critical")),
        Group(
            name="llmservice-slo-slow",
            rules=_budgets(service, objectives, SLOW, late, "warning"),
            interval=_SLOW_INTERVAL,
        ),
    ]


def _engine(service: LLMService) -> str:
    """Matchers of the series that its pods expose."""
    return equal(**_labels(service))


def _operator(service: LLMService) -> str:
    """Matchers of the series that the operator exposes about it."""
    return equal(namespace=service.metadata.namespace, name=service.metadata.name)


def _labels(service: LLMService) -> dict[str, str]:
    return {"namespace": service.metadata.namespace, "llmservice": service.metadata.name}


def _title(service: LLMService) -> str:
    return f"LLMService {service.metadata.namespace}/{service.metadata.name}"


def _queue_too_deep(service: LLMService, metrics: Metrics) -> Alert | None:
    if metrics.waiting is None:
        return None
    scaling = service.spec.autoscaling
    depth = scaling.queue_depth if scaling is not None else None
    most = max(10, 2 * depth.target) if depth is not None else 10
    waiting = f"{metrics.waiting}{{{_engine(service)}}}"
    return Alert(
        name="LLMServiceQueueTooDeep",
        when=f"sum({waiting}) / count(count by (pod) ({waiting})) > {most}",
        lasting="10m",
        severity="warning",
        summary=f"{_title(service)} has more requests than it can work on",
        description=f"{{{{ $value | humanize }}}} requests wait per pod, more than {most} for 10 minutes.",
        labels=_labels(service),
    )


def _kv_cache_full(service: LLMService, metrics: Metrics) -> Alert | None:
    if metrics.kv_cache_usage is None or metrics.waiting is None:
        return None
    matchers = _engine(service)
    suffers = f"sum by (pod) ({metrics.waiting}{{{matchers}}}) > 0"
    if metrics.preemptions is not None:
        suffers += f" or sum by (pod) (rate({metrics.preemptions}{{{matchers}}}[5m])) > 0"
    return Alert(
        name="LLMServiceKVCacheFull",
        when=f"max by (pod) ({metrics.kv_cache_usage}{{{matchers}}}) > 0.95 and ({suffers})",
        lasting="10m",
        severity="warning",
        summary=f"{_title(service)} has no KV cache left, and requests wait for it",
        description="{{ $value | humanizePercentage }} of the KV cache of pod {{ $labels.pod }} is in use,"
        " and requests wait or are preempted.",
        labels=_labels(service),
    )


def _engine_stalled(service: LLMService, metrics: Metrics) -> Alert | None:
    if metrics.running is None or metrics.generated_tokens is None:
        return None
    matchers = _engine(service)

    def growth(counter: str) -> str:
        return f"sum by (pod) (increase({counter}{{{matchers}}}[5m]))"

    when = (
        f"sum by (pod) (min_over_time({metrics.running}{{{matchers}}}[5m])) > 0"
        f" and {growth(metrics.generated_tokens)} == 0"
    )
    if metrics.steps is not None:  # a prompt of very many tokens is progress too
        when += f" unless {growth(metrics.steps)} > 0"
    return Alert(
        name="LLMServiceEngineStalled",
        when=when,
        lasting="1m",
        severity="critical",
        summary=f"{_title(service)} has an engine that answers nothing",
        description="Pod {{ $labels.pod }} has {{ $value }} running requests and has made no token for 5 minutes.",
        labels=_labels(service),
    )


def _replicas(service: LLMService) -> list[Alert]:
    def replicas(state: str) -> str:
        return f'quire_operator_llmservice_replicas{{{_operator(service)},state="{state}"}}'

    def most(series: str) -> str:  # a former leader may still be scraped
        return f"max by (namespace, name) ({series})"

    ready, wanted = most(replicas("ready")), most(replicas("wanted"))
    lately = most(f"max_over_time({replicas('ready')}[1h])")
    starting = service.spec.probes.startup_seconds + _PULLING_SECONDS
    scaling = service.spec.autoscaling
    wakes_from_zero = scaling is not None and scaling.may_sleep
    return [
        Alert(
            name="LLMServiceUnavailable",
            # not while it starts for the first time
            when=f"{ready} == 0 and {wanted} > 0 and {lately} > 0",
            lasting=duration(starting) if wakes_from_zero else "5m",
            severity="critical",
            summary=f"{_title(service)} is down",
            description="No replica serves, and some did within the last hour.",
            labels=_labels(service),
        ),
        Alert(
            name="LLMServiceReplicasShort",
            when=f"{wanted} - {ready} > 0",
            lasting=duration(starting),
            severity="warning",
            summary=f"{_title(service)} has fewer replicas than wanted",
            description=f"{{{{ $value }}}} replicas are missing, for longer than one may take to start ({starting} s).",
            labels=_labels(service),
        ),
    ]


def _conditions(service: LLMService) -> list[Alert]:
    reasons = "|".join(DOWNLOAD_REASONS)

    def holds(more: str) -> str:
        series = f"quire_operator_llmservice_condition{{{_operator(service)},{more}}}"
        return f"max by (namespace, name, reason) ({series}) == 1"

    return [
        Alert(
            name="LLMServiceDownloadFailing",
            when=holds(f'type=~"ModelCached|Ready",status="False",reason=~"{reasons}"'),
            lasting="5m",
            severity="warning",
            summary=f"{_title(service)} does not get its model",
            description="The weights cannot be had: {{ $labels.reason }}."
            f" `kubectl describe llmservice -n {service.metadata.namespace} {service.metadata.name}` has the words.",
            labels=_labels(service),
        ),
        Alert(
            name="LLMServiceStalled",
            when=holds(f'type="Stalled",status="True",reason!~"{reasons}"'),
            lasting="5m",
            severity="warning",
            summary=f"{_title(service)} cannot become what its spec says",
            description="Waiting is not enough: {{ $labels.reason }}."
            f" `kubectl describe llmservice -n {service.metadata.namespace} {service.metadata.name}` has the words.",
            labels=_labels(service),
        ),
    ]


def _objectives(service: LLMService) -> list[Objective]:
    metrics, slo = engine_of(service).metrics, service.spec.monitoring.slo
    measured = (
        ("timeToFirstToken", slo.time_to_first_token, metrics.time_to_first_token, metrics.time_to_first_token_buckets),
        (
            "timePerOutputToken",
            slo.time_per_output_token,
            metrics.time_per_output_token,
            metrics.time_per_output_token_buckets,
        ),
    )
    return [
        Objective(
            name=name,
            histogram=histogram,
            matchers=_engine(service),
            threshold=parse_duration(threshold),
            share=slo.objective,
            buckets=buckets,
            labels=_labels(service),
        )
        for name, threshold, histogram, buckets in measured
        if histogram is not None and buckets
    ]


def _budgets(
    service: LLMService,
    objectives: Sequence[Objective],
    burns: Sequence[Burn],
    windows: Sequence[int],
    severity: Severity,
) -> list[Alert | Recording]:
    """What is recorded in `windows`, then the alerts on it."""
    recordings = [recording for objective in objectives for recording in objective.recordings(windows)]
    return [*recordings, *(_budget(service, objective, burns, severity) for objective in objectives)]


def _budget(service: LLMService, objective: Objective, burns: Sequence[Burn], severity: Severity) -> Alert:
    within = duration(objective.threshold)
    return Alert(
        name=f"LLMService{objective.name[0].upper()}{objective.name[1:]}SLO",
        when=objective.burns(burns),
        severity=severity,
        summary=f"{_title(service)} is too slow: {objective.name} is above {within} too often",
        description=f"{{{{ $value | humanizePercentage }}}} of requests took longer than {within} of late;"
        f" {1 - objective.share:.2%} may. At this rate the month's allowance is soon gone.",
        labels=_labels(service),
    )
