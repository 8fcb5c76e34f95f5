"""The dashboard of all LLMServices and their operator."""

from __future__ import annotations

from typing import Any

from quire_operator.monitoring.cost import hourly_cost
from quire_operator.monitoring.dashboards.model import WINDOW, Dashboard, Panel, Query, Row
from quire_operator.monitoring.dashboards.service import UID as SERVICE_UID
from quire_operator.monitoring.promql import or_zero, quantile, ratio

UID = "quire-fleet"

_SERVED = 'llmservice!=""'
"""Engines that an LLMService runs, and no other vLLM."""

_BY_SERVICE = "namespace, llmservice"
_LEGEND = "{{namespace}}/{{llmservice}}"
_RECONCILES = "quire_operator_reconcile_seconds"


def fleet_dashboard() -> Dashboard:
    """What runs, what it holds and does, and how its operator is."""
    return Dashboard(
        uid=UID,
        title="Quire / Fleet",
        description="All LLMServices: how they are, what they hold, and how their operator is.",
        rows=(
            Row("Services", _services()),
            Row("Load by service", _load()),
            Row("GPUs", _gpus()),
            Row("Operator", _operator()),
        ),
    )


def _services() -> list[Panel]:
    conditions = "max by (namespace, name, type, status) (quire_operator_llmservice_condition)"
    return [
        Panel(
            title="LLMServices",
            kind="stat",
            width=4,
            queries=[
                Query(or_zero("sum(quire_operator_llmservices)"), "all"),
                Query(or_zero('sum(quire_operator_llmservices{ready="True"})'), "ready"),
            ],
            description="All, and those whose Ready is True.",
        ),
        Panel(
            title="By condition",
            width=10,
            queries=[Query(or_zero(f"count by (type, status) ({conditions} == 1)"), "{{type}}={{status}}")],
            description="How many LLMServices have each condition.",
        ),
        Panel(
            title="Not ready",
            kind="table",
            width=10,
            queries=[
                Query(
                    "max by (namespace, name, reason)"
                    ' (quire_operator_llmservice_condition{type="Ready",status="False"}) == 1'
                )
            ],
            links=[_link_to_service()],
            description="Each with its reason, which docs/llmservice.md explains. Empty when all is well.",
        ),
    ]


def _link_to_service() -> dict[str, Any]:
    fields = "${__data.fields.namespace}&var-llmservice=${__data.fields.name}"
    return {
        "title": "Show this LLMService",
        "url": f"/d/{SERVICE_UID}?${{datasource:queryparam}}&var-namespace={fields}",
    }


def _load() -> list[Panel]:
    tokens = f"sum by ({_BY_SERVICE}) (rate(vllm:generation_tokens_total{{{_SERVED}}}[{WINDOW}]))"
    waiting = f"sum by ({_BY_SERVICE}) (vllm:num_requests_waiting{{{_SERVED}}})"
    return [
        Panel(
            title="Tokens",
            width=12,
            stacked=True,
            queries=[Query(or_zero(tokens), _LEGEND)],
            description="Tokens generated, a second.",
        ),
        Panel(
            title="Queue",
            width=12,
            queries=[Query(or_zero(waiting), _LEGEND)],
            description="Requests that wait for a place in an engine.",
        ),
    ]


def _gpus() -> list[Panel]:
    held = "max by (namespace, name, product) (quire_operator_llmservice_gpus)"
    return [
        Panel(
            title="GPUs held",
            width=8,
            stacked=True,
            queries=[Query(or_zero(f"sum by (product) ({held})"), "{{product}}")],
            description="Held or asked for by the pods of all LLMServices, by product.",
        ),
        Panel(
            title="GPUs by service",
            width=8,
            stacked=True,
            queries=[Query(or_zero(f"sum by (namespace, name) ({held}) > 0"), "{{namespace}}/{{name}}")],
            description="Those services that hold any.",
        ),
        Panel(
            title="Cost of an hour",
            unit="none",
            width=8,
            stacked=True,
            queries=[Query(or_zero(f"{hourly_cost(by='namespace')}"), "{{namespace}}")],
            description="GPUs times the operator's gpuHourlyPrice, in that currency, by namespace.",
        ),
    ]


def _operator() -> list[Panel]:
    failed = f'sum(rate({_RECONCILES}_count{{result="failed"}}[{WINDOW}]))'
    return [
        Panel(
            title="Leading",
            kind="stat",
            width=4,
            queries=[
                Query(or_zero("sum(quire_operator_leading)"), "leading"),
                Query(or_zero("count(quire_operator_leading)"), "replicas"),
            ],
            description="One replica of each operator works; the others wait for its Lease.",
        ),
        Panel(
            title="Reconcile duration",
            unit="s",
            width=10,
            queries=[Query(quantile(share, _RECONCILES, "", WINDOW), f"P{share * 100:.0f}") for share in (0.5, 0.99)],
            description="0 while there is nothing to do.",
        ),
        Panel(
            title="Reconciles",
            unit="ops",
            width=10,
            queries=[Query(or_zero(f"sum by (result) (rate({_RECONCILES}_count[{WINDOW}]))"), "{{result}}")],
            description="By how they ended. At rest there are next to none.",
        ),
        Panel(
            title="API calls",
            unit="ops",
            queries=[Query(or_zero(f"sum by (verb) (rate(quire_operator_api_calls_total[{WINDOW}]))"), "{{verb}}")],
            description="Calls to the Kubernetes API. At rest only the Lease is renewed.",
        ),
        Panel(
            title="Errors",
            queries=[
                Query(ratio(failed, f"sum(rate({_RECONCILES}_count[{WINDOW}]))"), "share of reconciles that failed"),
                Query(
                    or_zero(f'sum by (code) (rate(quire_operator_api_calls_total{{code!~"2.."}}[{WINDOW}]))'),
                    "API {{code}} a second",
                ),
            ],
            description="404 and 409 are part of the work.",
        ),
        Panel(
            title="Queue of the operator",
            queries=[
                Query(or_zero("sum(quire_operator_queue_depth)"), "due"),
                Query(or_zero("sum(quire_operator_queue_running)"), "running"),
                Query(
                    or_zero(f"sum(rate(quire_operator_watch_restarts_total[{WINDOW}]))"), "watches restarted a second"
                ),
            ],
            description="LLMServices that wait to be reconciled. A line that stays up: the operator cannot keep up.",
        ),
    ]
