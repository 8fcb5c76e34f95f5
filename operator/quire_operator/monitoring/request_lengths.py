"""How long requests are: one query for all services, cheap enough to be asked for a thousand of them."""

from __future__ import annotations

DAYS = 7
LEAST_REQUESTS = 1000
"""A service that answered fewer has not shown yet what it is used for."""

_SERVICE = "namespace, llmservice"


def longest_requests() -> str:
    """Tokens of the longest prompt and the longest answer of each service together, in the last days.

    Each is the upper bound of the last bucket that is not empty, so this is never less than the longest request, but
    where that is beyond the last bound. Counters are taken as they stand once an hour, of pods that then run: a rate
    over all days would read every sample of them.
    """
    longest = f"{_longest('vllm:request_prompt_tokens')} + {_longest('vllm:request_generation_tokens')}"
    counted = f'sum by ({_SERVICE}) (vllm:request_prompt_tokens_count{{llmservice!=""}})'
    return f"({_most(longest)}) and on ({_SERVICE}) (({_most(counted)}) >= {LEAST_REQUESTS})"


def _longest(histogram: str) -> str:
    """The comparison drops NaN, which pods give that have answered nothing."""
    return f'(histogram_quantile(1, sum by ({_SERVICE}, le) ({histogram}_bucket{{llmservice!=""}})) >= 0)'


def _most(expression: str) -> str:
    """The largest value of the last days, now included; also of what has no pod now."""
    before = f"max_over_time(({expression})[{DAYS}d:1h])"
    return f"{before} > ({expression}) or ({expression}) or {before}"
