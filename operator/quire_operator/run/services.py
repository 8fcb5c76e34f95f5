"""The LLMServices as last seen."""

from __future__ import annotations

from collections.abc import Iterator

from quire_operator.kubeapi.client import Object
from quire_operator.kubeapi.reflector import Key, is_newer


class ServiceStore:
    """Whole objects but for their managed fields."""

    def __init__(self) -> None:
        self._objects: dict[Key, Object] = {}

    def __iter__(self) -> Iterator[Key]:
        return iter(list(self._objects))

    def objects(self) -> list[Object]:
        """All of them."""
        return list(self._objects.values())

    def __contains__(self, key: object) -> bool:
        return key in self._objects

    def get(self, key: Key) -> Object | None:
        """The object, or None when there is none."""
        return self._objects.get(key)

    def learn(self, item: Object) -> bool:
        """Take in a state, unless a later one of the same object is known. True when it was taken."""
        metadata = {name: value for name, value in item["metadata"].items() if name != "managedFields"}
        key = (metadata["namespace"], metadata["name"])
        known = self._objects.get(key)
        if known is not None and not is_newer(item, known):
            return False
        self._objects[key] = {**item, "metadata": metadata}
        return True

    def forget(self, key: Key, version: str | None = None) -> None:
        """It is gone as of `version`, unless a later state is known."""
        known = self._objects.get(key)
        if known is None:
            return
        if version is not None and is_newer(known, {"metadata": {"resourceVersion": version}}):
            return
        del self._objects[key]
