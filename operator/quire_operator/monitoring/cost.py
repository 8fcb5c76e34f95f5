"""What GPUs cost, from the GPUs that services hold and the price of an hour that the operator's settings name."""

from __future__ import annotations


def hourly_cost(matchers: str = "", *, by: str = "") -> str:
    """Cost of an hour, of the services that match together or `by` labels."""
    price = "max by (product) (quire_operator_gpu_hourly_price)"
    return f"sum by ({by}) ({_gpus(matchers)} * on (product) group_left () {price})"


def cost_of(window: str, matchers: str = "") -> str:
    """Cost of all GPUs that were held during `window`, minute by minute."""
    return f"sum(sum_over_time(({hourly_cost(matchers)})[{window}:1m])) / 60"


def _gpus(matchers: str) -> str:
    # the highest, since for a moment a former leader may be scraped too
    return f"max by (namespace, name, product) (quire_operator_llmservice_gpus{{{matchers}}})"
