"""Adapters that requests choose by name: which there are, and who still runs with them. Plain values, no tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter as its files have it, looked at: it fits the model."""

    content: bytes  # of the safetensors file
    scales: dict[str, float] = field(default_factory=dict)  # by module, as the file names it: what it is multiplied by


class AdapterFiles(Protocol):
    """Finds adapters."""

    def read(self, path: str) -> StoredAdapter:
        """The adapter in the folder `path`. Raises `ValueError` that says what is wrong with it."""
        ...


@runtime_checkable
class Adapting(Protocol):
    """An executor that holds adapters, by numbers that are never given twice."""

    def load_adapter(self, number: int, adapter: StoredAdapter) -> None: ...

    def unload_adapter(self, number: int) -> None: ...


class AdapterBook:
    """The adapters by name, of which at most `room` are in memory, and those that outlive their name for a while."""

    def __init__(self, room: int) -> None:
        self.room = room
        self._numbers: dict[str, int] = {}
        self._names: dict[int, str] = {}  # of all that are in memory
        self._users: Counter[int] = Counter()
        self._last = 0

    def number(self, name: str) -> int:
        """Raises `ValueError` where no adapter has the name."""
        if name not in self._numbers:
            raise ValueError(f"the adapter {name!r} is not loaded: load it, or leave it out")
        return self._numbers[name]

    def names(self, numbers: Iterable[int]) -> list[str]:
        """Sorted, and each once: an adapter and the one that took its place have the same."""
        return sorted({self._names[number] for number in numbers if number})

    def check_room(self, name: str) -> None:
        """Raise `ValueError` where no further adapter may be loaded as `name`."""
        unused = self._numbers.get(name)
        leaves = unused is not None and not self._users[unused]
        if len(self._names) - leaves >= self.room:
            raise ValueError(
                f"{len(self._names)} adapters are loaded, or still used by requests, and --max-cpu-loras is "
                f"{self.room}: unload one, or raise it"
            )

    def next_number(self) -> int:
        self._last += 1
        return self._last

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
