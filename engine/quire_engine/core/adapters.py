"""Adapters that requests choose by name: which there are, and who still runs with them. Plain values, no tensors."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredTensor:
    """One of an adapter's matrices, and where it is in the file's content."""

    dtype: str  # as safetensors writes it: F32, BF16, ...
    shape: tuple[int, int]
    start: int  # in bytes


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter as its files have it, looked at: it fits the model, and all tensors lie within the content."""

    content: bytearray  # of the safetensors file, behind its header
    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)  # by module, as the file names it: what it is multiplied by


class MissingAdapterError(ValueError):
    """No adapter has the name."""


class AdapterFiles(Protocol):
    """Finds adapters."""

    def read(self, path: str) -> StoredAdapter:
        """The adapter in the folder `path`. Raises `ValueError` that says what is wrong with it."""
        ...


@runtime_checkable
class Adapting(Protocol):
    """An executor that holds adapters, by numbers that are never given twice."""

    def prepare_adapter(self, number: int, adapter: StoredAdapter) -> None:
        """Make of an adapter what steps take. It may be called in another thread than all else, while steps run.

        Raises `MemoryError` or `RuntimeError` where there is no memory for it.
        """
        ...

    def adopt_adapter(self, number: int) -> None:
        """Have steps compute with what was prepared: from now on, and at once."""
        ...

    def unload_adapter(self, number: int) -> None:
        """Let go of an adapter, or of what was prepared of it, if anything was."""
        ...


class AdapterLoad:
    """An adapter on its way. `prepare` may run in any thread; the rest is `EngineCore`'s."""

    def __init__(
        self, name: str, number: int, path: str, files: AdapterFiles, executor: Adapting, *, replace_it: bool
    ) -> None:
        self.name, self.number, self.replace_it = name, number, replace_it
        self._path, self._files, self._executor = path, files, executor
        self._error: Exception | None = None

    def prepare(self) -> None:
        """Read it and make of it what steps take. What goes wrong is told by `adopt`."""
        try:
            self._executor.prepare_adapter(self.number, self._files.read(self._path))
        except (ValueError, MemoryError, RuntimeError) as error:
            self._error = error
        except Exception as error:
            log.exception("the adapter %r could not be prepared", self.name)
            self._error = error

    def adopt(self) -> None:
        """Have steps compute with it. Raises `ValueError` that says why that cannot be."""
        if isinstance(self._error, (MemoryError, RuntimeError)):  # torch's of a full device is one
            raise ValueError(f"the adapter {self.name!r} cannot be taken into memory: {self._error}") from self._error
        if isinstance(self._error, ValueError):
            raise self._error
        if self._error is not None:
            text = f"{type(self._error).__name__}: {self._error}"
            raise ValueError(f"the adapter {self.name!r} could not be prepared: {text}") from self._error
        self._executor.adopt_adapter(self.number)

    def drop(self) -> None:
        """Nobody needs it any more."""
        self._executor.unload_adapter(self.number)


class AdapterBook:
    """The adapters by name, of which at most `room` are in memory, and those that outlive their name for a while."""

    def __init__(self, room: int) -> None:
        self.room = room
        self._numbers: dict[str, int] = {}
        self._names: dict[int, str] = {}  # of all that are in memory
        self._users: Counter[int] = Counter()
        self._coming: set[int] = set()
        self._last = 0

    def number(self, name: str) -> int:
        """Raises `MissingAdapterError`."""
        if name not in self._numbers:
            raise MissingAdapterError(f"the adapter {name!r} is not loaded: load it, or leave it out")
        return self._numbers[name]

    def names(self, numbers: Iterable[int]) -> list[str]:
        """Sorted, and each once: an adapter and the one that took its place have the same."""
        return sorted({self._names[number] for number in numbers if number})

    def expect(self, name: str, *, replace_it: bool) -> int:
        """Keep room for an adapter that is to be loaded. Returns its number. Raises `ValueError` as `check`."""
        self.check(name, replace_it=replace_it)
        self._last += 1
        self._coming.add(self._last)
        return self._last

    def expect_no_more(self, load: AdapterLoad) -> None:
        """It has come, and is adopted. Raises `ValueError` and drops it as `check`: much may have changed meanwhile."""
        self._coming.discard(load.number)
        try:
            self.check(load.name, replace_it=load.replace_it)
            load.adopt()
        except ValueError:
            load.drop()
            raise

    def check(self, name: str, *, replace_it: bool) -> None:
        """Raise `ValueError` where no further adapter may be loaded as `name`."""
        before = self._numbers.get(name)
        if before is not None and not replace_it:
            raise ValueError(f"the adapter {name!r} is loaded already: unload it, or set load_inplace")
        leaves = before is not None and not self._users[before]
        taken = len(self._names) + len(self._coming)
        if taken - leaves >= self.room:
            raise ValueError(
                f"{taken} adapters are loaded, on their way, or still used by requests, and --max-cpu-loras is "
                f"{self.room}: unload one, or raise it"
            )

    def add(self, name: str, number: int) -> None:
        self._numbers[name], self._names[number] = number, name

    def remove(self, name: str) -> list[int]:
        """Forget a name. Returns the number to unload, which is none yet where requests use it."""
        number = self._numbers.pop(name)
        return self._leave(number)

    def use(self, number: int) -> None:
        if number:
            self._users[number] += 1

    def release(self, number: int) -> list[int]:
        """A request has ended. Returns the number to unload, if it was the last one of an adapter without a name."""
        if not number:
            return []
        self._users[number] -= 1
        return self._leave(number) if self._numbers.get(self._names[number]) != number else []

    def _leave(self, number: int) -> list[int]:
        if self._users[number]:
            return []
        del self._users[number], self._names[number]
        return [number]

    def __contains__(self, name: str) -> bool:
        return name in self._numbers
