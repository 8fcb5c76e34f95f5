"""The dashboard of one LLMService."""

from __future__ import annotations

from quire_operator.monitoring.cost import cost_of, hourly_cost
from quire_operator.monitoring.dashboards.model import RANGE, WINDOW, Dashboard, Panel, Query, Row, Variable
from quire_operator.monitoring.promql import equal, or_zero, quantile, ratio

UID = "quire-service"

_ENGINE = equal(namespace="$namespace", llmservice="$llmservice")
_OPERATOR = equal(namespace="$namespace", name="$llmservice")
_REQUESTS = f'{_ENGINE},handler=~"/v1/.*"'
_ANSWERED = f'vllm:request_success_total{{{_ENGINE},finished_reason!~"abort|error"}}'


def service_dashboard() -> Dashboard:
    """Load, latency, memory, outcome and cost of the service that is chosen at the top."""
    return Dashboard(
        uid=UID,
        title="Quire / LLMService",
        description="One LLMService: what it is asked, how fast it answers, what it costs.",
        variables=(
            Variable(name="namespace", label="namespace", series="quire_operator_llmservice_replicas"),
            Variable(
                name="llmservice",
                label="name",
                series=f"quire_operator_llmservice_replicas{{{equal(namespace='$namespace')}}}",
            ),
        ),
        rows=(
            Row("Now", _now()),
            Row("Load", _load()),
            Row("Latency", _latency()),
            Row("Memory", _memory()),
            Row("Outcome", _outcome()),
            Row("Cost", _cost()),
        ),
    )


def _summed(series: str, matchers: str = _ENGINE) -> str:
    return or_zero(f"sum({series}{{{matchers}}})")


def _rate(counter: str, matchers: str = _ENGINE) -> str:
    return or_zero(f"sum(rate({counter}{{{matchers}}}[{WINDOW}]))")


def _replicas(state: str) -> str:
    return or_zero(f'max(quire_operator_llmservice_replicas{{{_OPERATOR},state="{state}"}})')


def _now() -> list[Panel]:
    return [
        Panel(
            title="Replicas",
            kind="stat",
            width=4,
            height=4,
            queries=[Query(_replicas("ready"), "ready"), Query(_replicas("wanted"), "wanted")],
            description="As the status of the LLMService says.",
        ),
        Panel(
            title="GPUs",
            kind="stat",
            width=4,
            height=4,
            queries=[Query(or_zero(f"sum(max by (product) (quire_operator_llmservice_gpus{{{_OPERATOR}}}))"))],
            description="Held or asked for by its pods, older ones in a rollout included.",
        ),
        Panel(
            title="Answers",
            kind="stat",
            unit="reqps",
            width=4,
            height=4,
            queries=[Query(_rate("vllm:request_success_total"))],
            description="Answers that ended, a second.",
        ),
        Panel(
            title="Tokens",
            kind="stat",
            width=4,
            height=4,
            queries=[Query(_rate("vllm:generation_tokens_total"))],
            description="Tokens generated, a second.",
        ),
        Panel(
            title="Conditions",
            kind="table",
            width=8,
            height=4,
            queries=[
                Query(f"max by (type, status, reason) (quire_operator_llmservice_condition{{{_OPERATOR}}}) == 1"),
            ],
            description="As in its status; docs/llmservice.md explains each reason.",
        ),
    ]


def _load() -> list[Panel]:
    return [
        Panel(
            title="Throughput",
            queries=[
                Query(_rate("vllm:generation_tokens_total"), "generated"),
                Query(_rate("vllm:prompt_tokens_total"), "prompt"),
            ],
            description="Tokens a second, over all pods.",
        ),
        Panel(
            title="Requests",
            queries=[
                Query(_summed("vllm:num_requests_running"), "running"),
                Query(_summed("vllm:num_requests_waiting"), "waiting"),
            ],
            description="Those that engines work on, and those that wait for a place: the queue.",
        ),
        Panel(
            title="Running by pod",
            queries=[
                Query(
                    or_zero(f"sum by (pod) (vllm:num_requests_running{{{_ENGINE}}})"),
                    "{{pod}}",
                )
            ],
            description="Even lines are evenly spread requests.",
        ),
    ]


def _quantiles(histogram: str) -> list[Query]:
    return [
        Query(quantile(0.5, histogram, _ENGINE, WINDOW), "P50"),
        Query(quantile(0.99, histogram, _ENGINE, WINDOW), "P99"),
    ]


def _latency() -> list[Panel]:
    return [
        Panel(
            title="Time to first token",
            unit="s",
            queries=_quantiles("vllm:time_to_first_token_seconds"),
            description="From a request's arrival, waiting included. 0 while nothing is asked.",
        ),
        Panel(
            title="Time per output token",
            unit="s",
            queries=_quantiles("vllm:request_time_per_output_token_seconds"),
            description="A request's mean after its first token. 0 while nothing is asked.",
        ),
        Panel(
            title="Whole answer",
            unit="s",
            queries=_quantiles("vllm:e2e_request_latency_seconds"),
            description="From arrival to the last token. 0 while nothing is asked.",
        ),
    ]


def _memory() -> list[Panel]:
    hits, asked = (f"sum(rate(vllm:prefix_cache_{what}_total{{{_ENGINE}}}[{WINDOW}]))" for what in ("hits", "queries"))
    return [
        Panel(
            title="KV cache in use",
            unit="percentunit",
            queries=[Query(or_zero(f"max by (pod) (vllm:kv_cache_usage_perc{{{_ENGINE}}})"), "{{pod}}")],
            description="Near 100% new requests wait, or running ones are preempted.",
        ),
        Panel(
            title="Prefix hits",
            unit="percentunit",
            queries=[Query(ratio(hits, asked), "hits")],
            description="Share of prompt tokens that were computed before.",
        ),
        Panel(
            title="Preemptions",
            unit="ops",
            queries=[Query(_rate("vllm:num_preemptions_total"), "preemptions")],
            description="Requests that gave up their pages to others, a second, and are computed anew.",
        ),
    ]


def _outcome() -> list[Panel]:
    return [
        Panel(
            title="Errors by code",
            unit="reqps",
            width=12,
            queries=[
                Query(
                    or_zero(f'sum by (status) (rate(http_requests_total{{{_REQUESTS},status=~"[45].."}}[{WINDOW}]))'),
                    "{{status}}",
                )
            ],
            description="HTTP answers that are errors: 4xx the clients', 5xx the service's.",
        ),
        Panel(
            title="Finish reasons",
            unit="reqps",
            width=12,
            stacked=True,
            queries=[
                Query(
                    or_zero(f"sum by (finished_reason) (rate(vllm:request_success_total{{{_ENGINE}}}[{WINDOW}]))"),
                    "{{finished_reason}}",
                )
            ],
            description="Why answers ended. Many `length` are answers that were cut by max_tokens.",
        ),
    ]


def _cost() -> list[Panel]:
    answers = f"sum(increase({_ANSWERED}[{RANGE}]))"
    generated, prompt = (
        f"sum(increase(vllm:{what}_tokens_total{{{_ENGINE}}}[{RANGE}]))" for what in ("generation", "prompt")
    )
    cost = cost_of(RANGE, _OPERATOR)
    return [
        Panel(
            title="Cost of an hour",
            unit="none",
            width=12,
            queries=[Query(or_zero(hourly_cost(_OPERATOR)), "now")],
            description="Its GPUs times the operator's gpuHourlyPrice, in that currency. 0 where no price is set.",
        ),
        Panel(
            title="Cost per 1,000 requests",
            kind="stat",
            unit="none",
            width=6,
            queries=[Query(ratio(f"1000 * {cost}", answers))],
            description="All GPU hours of the shown time, idle ones too, over the answers in it. 0 without answers.",
        ),
        Panel(
            title="Cost per million tokens",
            kind="stat",
            unit="none",
            width=6,
            queries=[
                Query(ratio(f"1000000 * {cost}", generated), "generated"),
                Query(ratio(f"1000000 * {cost}", f"{generated} + {prompt}"), "prompt and generated"),
            ],
            description="All GPU hours of the shown time, idle ones too, over the tokens in it. 0 without tokens.",
        ),
    ]
