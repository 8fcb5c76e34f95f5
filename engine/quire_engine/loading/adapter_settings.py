"""What peft writes beside an adapter's weights: how large it is, and how it is scaled."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quire_engine.loading.checkpoint import read_json
from quire_engine.loading.errors import CheckpointError
from quire_engine.memory_plan.image_adapter import SETTINGS

# What is followed of peft's settings, by what they have to be.
_ONLY: dict[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False, None),
    "use_qalora": (False, None),
    "lora_bias": (False, None),
    "alora_invocation_tokens": (None,),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, []),
    "target_parameters": (None, []),
    "layer_replication": (None, []),
}
_LARGEST = 4096
_SETTINGS_BYTES = 1 << 20
# Names of modules, and what is told of many at once, with few repetitions: a regular expression of groups that repeat
# may take longer than anybody waits, and each key is held against each module.
_KEY = re.compile(r"[\w.^$\\|\[\]-]*([*+?][\w.^$\\|\[\]-]*){0,3}")
_KEYS_AT_MOST = 2048
_REPEATING_AT_MOST = 32

_Pattern = Sequence[tuple[re.Pattern[str], float]]  # what the end of a module's name is, and the value there


@dataclass(frozen=True)
class AdapterSettings:
    """Ranks and scales of an adapter's modules."""

    rank: int
    alpha: float
    by_root: bool = False  # the scale has the rank's square root below it (Kalajdzievski, 2023, rsLoRA)
    ranks: _Pattern = ()  # of some modules, compiled: `re` itself keeps no more than some hundreds
    alphas: _Pattern = ()

    def rank_of(self, module: str) -> int:
        return int(_first(self.ranks, module, self.rank))

    def scale(self, module: str) -> float:
        """What the product of the two matrices of `module` is multiplied by."""
        rank = self.rank_of(module)
        return _first(self.alphas, module, self.alpha) / (rank**0.5 if self.by_root else rank)


def adapter_settings(folder: Path) -> AdapterSettings:
    """The settings of the adapter in `folder`. Raises `CheckpointError` that names the file and the field."""
    file = folder / SETTINGS
    if file.is_file() and file.stat().st_size > _SETTINGS_BYTES:
        raise _wrong(folder, f"it has more than {_SETTINGS_BYTES} bytes, and holds no more than settings")
    settings = read_json(file)
    for setting, allowed in _ONLY.items():
        if settings.get(setting, allowed[0]) not in allowed:
            raise _wrong(folder, f"{setting} is {settings[setting]!r}: only {allowed[0]!r} is supported")
    rank = _number(folder, "r", settings.get("r"))
    ranks = _values(folder, "rank_pattern", settings.get("rank_pattern"))
    for name, value in {"r": rank, **{f"rank_pattern, {key}": value for key, value in ranks.items()}}.items():
        if value != int(value):
            raise _wrong(folder, f"{name} is {value}: it must be a whole number")
    by_root = settings.get("use_rslora") or False
    if not isinstance(by_root, bool):
        raise _wrong(folder, f"use_rslora is {by_root!r}: it must be true or false")
    return AdapterSettings(
        int(rank),
        _number(folder, "lora_alpha", settings.get("lora_alpha")),
        by_root,
        _compiled(folder, "rank_pattern", ranks),
        _compiled(folder, "alpha_pattern", _values(folder, "alpha_pattern", settings.get("alpha_pattern"))),
    )


def _first(pattern: _Pattern, module: str, otherwise: float) -> float:
    """The value of the first key that `module` ends with, as peft finds it."""
    return next((value for key, value in pattern if key.match(module)), otherwise)


def _values(folder: Path, name: str, found: object) -> dict[str, float]:
    """Of `rank_pattern` or `alpha_pattern`, by key."""
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise _wrong(folder, f"{name} is {found!r}: it must be an object")
    if len(found) > _KEYS_AT_MOST:
        raise _wrong(folder, f"{name} has {len(found)} keys: it must have at most {_KEYS_AT_MOST}")
    repeating = sum(any(sign in key for sign in "*+?") for key in found)
    if repeating > _REPEATING_AT_MOST:
        raise _wrong(folder, f"{name} has {repeating} keys with * + ?: it must have at most {_REPEATING_AT_MOST}")
    return {key: _number(folder, f"{name}, {key}", value) for key, value in found.items()}


def _compiled(folder: Path, name: str, values: Mapping[str, float]) -> _Pattern:
    pattern: list[tuple[re.Pattern[str], float]] = []
    for key, value in values.items():
        if not _KEY.fullmatch(key):
            raise _wrong(
                folder, f"{name} holds {key!r}: write names of modules, with . [ ] | ^ $ and three of * + ? at most"
            )
        try:
            pattern.append((re.compile(rf"(.*\.)?({key})$"), value))
        except re.error as error:
            raise _wrong(folder, f"{name} holds {key!r}, which is no regular expression: {error}") from error
    return pattern


def _number(folder: Path, name: str, value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= _LARGEST:
        raise _wrong(folder, f"{name} is {value!r}: it must be a number above 0, at most {_LARGEST}")
    return float(value)


def _wrong(folder: Path, what: str) -> CheckpointError:
    return CheckpointError("InvalidCheckpoint", f"{folder / SETTINGS}: {what}")
