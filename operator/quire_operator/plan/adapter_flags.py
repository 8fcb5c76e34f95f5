"""How many adapters the engine makes room for, and of which rank: by the spec, and by flags that no field has."""

from __future__ import annotations

from collections.abc import Iterator

from quire_engine.memory_plan.adapter_sizes import MAX_LORA_RANK, MAX_LORAS
from quire_operator.api import Spec


def largest_rank(spec: Spec) -> int:
    """`--max-lora-rank`."""
    return _number(spec, "--max-lora-rank") or MAX_LORA_RANK


def adapters_at_once(spec: Spec) -> int:
    """Adapters that may be loaded at once."""
    running = _number(spec, "--max-loras") or MAX_LORAS
    return _number(spec, "--max-cpu-loras") or max(running, len(spec.model.adapters))


def _number(spec: Spec, flag: str) -> int | None:
    """The last value of a flag in spec.engine.args; None where there is none, or none that the engine takes."""
    values = [value for name, value in _flags(spec.engine.args) if name == flag]
    return int(values[-1]) if values and values[-1].isdecimal() else None


def _flags(args: list[str]) -> Iterator[tuple[str, str]]:
    for argument, following in zip(args, [*args, ""][1:], strict=True):
        name, is_whole, value = argument.partition("=")
        yield name.replace("_", "-"), value if is_whole else following
