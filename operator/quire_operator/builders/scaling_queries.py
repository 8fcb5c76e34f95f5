"""The PromQL that autoscaling asks. docs/decisions/0020-what-autoscaling-asks-prometheus.md says why it is so."""

from __future__ import annotations

from quire_operator.api import LLMService
from quire_operator.api.autoscaling import Latency
from quire_operator.api.duration import parse_duration
from quire_operator.builders.engines import engine_of
from quire_operator.builders.workload import GROUP_SUFFIX
from quire_operator.monitoring.promql import duration, equal

_SHORTEST_WINDOW_SECONDS = 120
_SCRAPES_IN_A_WINDOW = 4

_LONGEST_BEFORE_SUFFIX = 58
"""Of a pod's name, whose last 5 characters the API server makes up: what comes before is cut off here."""


def waiting_requests(service: LLMService) -> str | None:
    """Requests that wait, in all pods together; None where the engine does not tell.

    A sum: the HorizontalPodAutoscaler divides it by the target itself, and an average would be divided twice.
    """
    waiting = engine_of(service).metrics.waiting
    return _unless_asleep(service, _total(service, waiting)) if waiting is not None else None


def requests(service: LLMService) -> str | None:
    """Requests that wait or are being answered, in all pods together; None where the engine does not tell."""
    metrics = engine_of(service).metrics
    if metrics.waiting is None or metrics.running is None:
        return None
    return _unless_asleep(service, f"{_total(service, metrics.waiting)} + {_total(service, metrics.running)}")


def latency_milliseconds(service: LLMService, latency: Latency) -> str | None:
    """A quantile of latency over all pods, in milliseconds; None where the engine does not tell.

    It is 0 while nothing is answered: the quantile of no observations is NaN, which a comparison drops.
    """
    metrics = engine_of(service).metrics
    histograms = {
        "timePerOutputToken": metrics.time_per_output_token,
        "timeToFirstToken": metrics.time_to_first_token,
    }
    histogram, there = histograms[latency.metric], metrics.running or metrics.waiting
    if histogram is None or there is None:
        return None
    window = max(_SHORTEST_WINDOW_SECONDS, _SCRAPES_IN_A_WINDOW * parse_duration(service.spec.monitoring.interval))
    rates = " or ".join(f"rate({series}[{duration(window)}])" for series in _series(service, f"{histogram}_bucket"))
    quantile = f"histogram_quantile({latency.quantile:g}, {_once_a_pod(rates, by='le')})"
    return _unless_asleep(service, f"(1000 * {quantile} >= 0) or 0 * {_total(service, there)}")


def _unless_asleep(service: LLMService, query: str) -> str:
    """For a service that may scale to zero, 0 while there is no pod. One that cannot be read gives nothing still."""
    scaling = service.spec.autoscaling
    if scaling is None or not scaling.may_sleep:
        return query
    return f"({query}) or (vector(0) unless on () ({' or '.join(_series(service, 'up'))}))"


def _total(service: LLMService, metric: str) -> str:
    return _once_a_pod(" or ".join(_series(service, metric)))


def _once_a_pod(series: str, by: str = "") -> str:
    """The sum of `series`, in which a pod that two jobs scrape counts once."""
    also = f"{by}, " if by else ""
    outer = f"sum by ({by})" if by else "sum"
    return f"{outer} (max by ({also}pod) (sum by ({also}pod, job) ({series})))"


def _series(service: LLMService, metric: str) -> tuple[str, str]:
    """The service's own series of a metric: by the ServiceMonitor's label, and by the names of its pods."""
    namespace, name = service.metadata.namespace, service.metadata.name
    labelled = equal(namespace=namespace, llmservice=name)
    named = f'{equal(namespace=namespace)},pod=~"{_pod_names(name, service.spec.parallelism.nodes)}"'
    return f"{metric}{{{labelled}}}", f"{metric}{{{named}}}"


def _pod_names(name: str, nodes: int = 1) -> str:
    """Names that serving pods get, as a regular expression, which Prometheus anchors at both ends.

    Of a Deployment's, the number of parts is fixed: `llama-2-6d4b75cb6d-x7k2p` has one too many to be a pod of `llama`.
    """
    if nodes > 1:
        return f"{name}-{GROUP_SUFFIX}-[0-9]+"
    is_cut_off = len(f"{name}-0123456789-") > _LONGEST_BEFORE_SUFFIX
    return f"{name}-[a-f0-9]{{1,10}}{'-?' if is_cut_off else '-'}[a-z0-9]{{5}}"
