"""The adapters that --lora-modules names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class AdapterModule:
    """One adapter: what requests call it, its folder or its repository, and of what it is, where that is said."""

    name: str
    path: str
    base: str | None = None
    revision: str | None = None
    """Branch, tag or commit of one on the hub."""


def adapter_modules(values: Sequence[str]) -> list[AdapterModule]:
    """The values of the flag. Raises `ValueError` for one that cannot be read, and for a name that comes twice."""
    modules = [_module(value) for value in values]
    names = [module.name for module in modules]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"--lora-modules has {twice} twice: give each adapter a name of its own")
    return modules


def _module(value: str) -> AdapterModule:
    if not value.startswith("{"):
        name, _, path = value.partition("=")
        if not name or not path:
            raise ValueError(f"--lora-modules is {value!r}: write name=folder")
        return AdapterModule(name, path)
    try:
        found = json.loads(value)
    except ValueError as error:
        raise ValueError(f"--lora-modules is {value!r}, which is no JSON: {error}") from error
    name, path, base, revision = (found.get(key) for key in ("name", "path", "base_model_name", "revision"))
    if not (
        (isinstance(name, str) and name and isinstance(path, str) and path)
        and (isinstance(base, str | None) and isinstance(revision, str | None))
    ):
        raise ValueError(
            f'--lora-modules is {value!r}: write {{"name": ..., "path": ..., "base_model_name": ..., "revision": ...}}'
        )
    return AdapterModule(name, path, base, revision)
