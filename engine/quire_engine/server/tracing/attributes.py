"""What a span says of a request, under the names of OpenTelemetry's GenAI conventions and of vLLM. Pure.

https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quire_engine.sampling_params import SamplingParams
from quire_engine.server.errors import error_kind, sendable
from quire_engine.server.metrics import RequestTimes
from quire_engine.server.sequences import TokenCount
from quire_engine.server.tracing.facts import RequestFacts

Value = str | bool | int | float | Sequence[str]
MAX_TEXT = 256  # characters of what a client says: spans wait in memory


def span_attributes(facts: RequestFacts) -> Mapping[str, Value]:
    """Nothing of the prompt or the answer, nor of messages, which may quote them."""
    said: dict[str, Value | None] = {
        "gen_ai.operation.name": facts.operation.name,
        "gen_ai.provider.name": "quire",
        "gen_ai.request.id": facts.request_id,
        "gen_ai.request.model": None if facts.asked_model is None else sendable(facts.asked_model[:MAX_TEXT]),
        "gen_ai.response.model": facts.model,
        "http.request.method": "POST",
        "http.route": facts.route,
        "http.response.status_code": facts.status,
        "error.type": error_type(facts),
    }
    if facts.status == 200:
        said["gen_ai.response.id"] = f"{facts.operation.id_prefix}-{facts.request_id}"
    if facts.params is not None:
        said |= _asked(facts.params) | {"gen_ai.request.stream": facts.is_streamed}
    if facts.count is not None:
        said |= _used(facts.count, generates=facts.params is not None)
    if facts.sequences and facts.ended is not None:
        said |= _latencies(facts.sequences, facts.ended, generates=facts.params is not None)
    return {name: value for name, value in said.items() if value is not None}


def error_type(facts: RequestFacts) -> str | None:
    """What went wrong: the `type` in the body that the client reads. None for a whole answer."""
    failed = facts.failed_with or facts.status
    return error_kind(failed) if failed >= 400 else None


def _asked(params: SamplingParams) -> dict[str, Value | None]:
    """The parameters that held, the model's and the server's defaults included."""
    return {
        "gen_ai.request.max_tokens": params.max_tokens,
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.request.top_k": params.top_k if params.top_k > 0 else None,
        "gen_ai.request.frequency_penalty": params.frequency_penalty or None,
        "gen_ai.request.presence_penalty": params.presence_penalty or None,
        "gen_ai.request.seed": params.seed,
        "gen_ai.request.choice.count": params.n,
        "gen_ai.request.n": params.n,  # vLLM's name of it
    }


def _used(count: TokenCount, *, generates: bool) -> dict[str, Value | None]:
    """The usage that the answer tells, under the conventions' names and the older ones, which vLLM has."""
    usage = count.as_usage()
    details = usage.prompt_tokens_details
    used: dict[str, Value | None] = {
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.prompt_tokens": usage.prompt_tokens,
    }
    if not generates:
        return used
    reasons = [count.finish_reasons[index] for index in sorted(count.finish_reasons)]
    return used | {
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "gen_ai.usage.completion_tokens": usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": None if details is None else details.cached_tokens,
        "gen_ai.response.finish_reasons": reasons or None,
    }


def _latencies(sequences: Sequence[RequestTimes], ended: float, *, generates: bool) -> dict[str, Value | None]:
    """Seconds, as the histograms of /metrics measure them. Of several sequences, from the first to the last."""
    arrival = min(times.arrival for times in sequences)
    started = min((times.started for times in sequences if times.started is not None), default=None)
    first = min((times.first_token for times in sequences if times.first_token is not None), default=None)
    last = max((times.last_token for times in sequences if times.last_token is not None), default=None)
    told: dict[str, Value | None] = {
        "gen_ai.latency.e2e": ended - arrival,
        "gen_ai.latency.time_in_queue": _between(arrival, started),
        "gen_ai.latency.time_in_model_inference": _between(started, last),
    }
    if generates:
        told |= {
            "gen_ai.latency.time_to_first_token": _between(arrival, first),
            "gen_ai.latency.time_in_model_prefill": _between(started, first),
            "gen_ai.latency.time_in_model_decode": _between(first, last),
        }
    return told


def _between(begun: float | None, ended: float | None) -> float | None:
    return None if begun is None or ended is None else ended - begun
