"""Which adapters an offline engine holds: those of the latest calls."""

from __future__ import annotations

from collections.abc import Sequence

from quire_engine.core.loop import EngineCore
from quire_engine.lora.request import LoRARequest


class Residents:
    """Loads adapters as calls choose them, in place of those that were chosen longest ago.

    `loaded` are those that the engine has begun with: folders by name.
    """

    def __init__(self, core: EngineCore, loaded: dict[str, str]) -> None:
        self._core, self._room = core, core.config.adapter_room
        self._paths = dict(loaded)  # the latest used last

    def choose(
        self, requests: LoRARequest | Sequence[LoRARequest | None] | None, num_prompts: int
    ) -> list[LoRARequest | None]:
        """The adapters, which are loaded then, one a prompt; None for the model itself.

        Call it while no request runs. Raises `ValueError` for what cannot be loaded, by field and name.
        """
        if requests is None:
            return [None] * num_prompts
        every: list[LoRARequest | None] = [requests] * num_prompts if isinstance(requests, LoRARequest) else [*requests]
        if len(every) != num_prompts:
            raise ValueError(f"there are {num_prompts} prompts and {len(every)} lora_request: give one or as many")
        wanted: dict[str, str] = {}
        for request in every:
            if request is None:
                continue
            path = wanted.setdefault(request.lora_name, request.lora_path)
            if path != request.lora_path:
                raise ValueError(
                    f"lora_request has {request.lora_name!r} in {path} and in {request.lora_path}: give one of them "
                    "another lora_name"
                )
        if wanted and not self._room:
            raise ValueError("lora_request is set and adapters are off: set enable_lora=True")
        if len(wanted) > self._room:
            raise ValueError(
                f"lora_request has {len(wanted)} adapters and max_cpu_loras is {self._room}: raise it, or give "
                "the prompts in several calls"
            )
        for name in wanted:
            if name in self._paths:
                self._paths[name] = self._paths.pop(name)
        for name, path in wanted.items():
            self._load(name, path)
        return every

    def _load(self, name: str, path: str) -> None:
        if self._paths.get(name) == path:
            return
        if name not in self._paths and len(self._paths) >= self._room:
            oldest = next(iter(self._paths))
            self._core.unload_adapter(oldest)
            del self._paths[oldest]
        try:
            self._core.load_adapter(name, path, replace_it=name in self._paths)
        except ValueError as error:
            raise ValueError(f"lora_request {name}: {error}") from error
        self._paths.pop(name, None)
        self._paths[name] = path
