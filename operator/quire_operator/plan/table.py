"""A plan as a table, for people."""

from __future__ import annotations

from collections.abc import Iterable

from quire_operator.api import Advice, PlanStatus

_GIB = 1 << 30


def plan_table(name: str, plan: PlanStatus) -> str:
    """One line a term of the sum, then what follows from it."""
    if plan.verdict == "Skipped":
        return f"{name}: not planned ({plan.reason}): {plan.message}\n"
    if plan.verdict == "UnsupportedModel":
        return f"{name}: cannot be served: {plan.message}\n"
    stages = plan.pipeline or 1
    gpus = (plan.tensor or 1) * stages
    whose = "of the pod" if plan.device == "CPU" else "of each GPU" if gpus > 1 else "of the GPU"
    rows = [
        ("device", f"{plan.device}" + (f" x {gpus}" if gpus > 1 else "")),
        *([("stages", f"{stages:>9}, and what follows is of the largest")] if stages > 1 else []),
        (f"memory {whose}", _gib(plan.memory_bytes)),
        ("usable", _gib(plan.usable_bytes)),
        ("weights", _gib(plan.weights_bytes)),
        ("activations, at most", _gib(plan.activations_bytes)),
        ("process", _gib(plan.other_bytes)),
        ("KV cache", _gib(plan.kv_cache_bytes)),
        ("KV cache of a token", f"{(plan.kv_bytes_per_token or 0) / 1024:>9.3f} KiB"),
        ("tokens in the KV cache", f"{plan.tokens or 0:>9}"),
        ("longest request", f"{plan.max_model_len or 0:>9} tokens"),
        ("such requests at once", f"{plan.full_length_requests or 0:>9}"),
    ]
    if plan.smallest_tensor is not None:
        rows.append(("GPUs needed", f"{plan.smallest_tensor * stages:>9}"))
    lines = [f"  {label:<24}{value}" for label, value in rows]
    verdict = "fits" if plan.verdict == "Fits" else "does not fit"
    notes = [f"  - {suggestion}" for suggestion in plan.suggestions]
    return "\n".join([f"{name}: {verdict}", *lines, *notes]) + "\n"


def advice_lines(advice: Iterable[Advice]) -> str:
    """One line each, as they stand below a plan's table."""
    return "".join(f"  {one.reason}: {one.message}\n" for one in advice)


def _gib(size: int | None) -> str:
    return f"{(size or 0) / _GIB:>9.2f} GiB"
