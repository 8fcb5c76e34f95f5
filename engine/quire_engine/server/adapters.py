"""The adapters that requests may name as their model, and what loads and unloads them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from quire_engine.adapter_modules import adapter_modules
from quire_engine.server.engine_client import EngineClient
from quire_engine.server.errors import ApiError
from quire_engine.server.protocol.adapters import LoadAdapterRequest, UnloadAdapterRequest
from quire_engine.server.protocol.models import ModelCard
from quire_engine.startup_error import StartupError

MAY_CHANGE = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"


@dataclass
class Adapters:
    """By name, the cards of those that are loaded. With `may_change` clients may load and unload them.

    Raises `StartupError` for an adapter of --lora-modules that is called like the model.
    """

    client: EngineClient
    base_names: Sequence[str]
    may_change: bool
    cards: dict[str, ModelCard] = field(default_factory=dict)
    _changing: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self.may_change = self.may_change or os.environ.get(MAY_CHANGE, "").lower() in ("1", "true")
        for module in adapter_modules(self.client.config.lora_modules):
            if module.name in self.base_names:
                raise StartupError(
                    "InvalidFlag",
                    f"--lora-modules has {module.name}, which is the model: give the adapter another name",
                )
            self._add(module.name, module.path, module.base)

    def choice(self, model: str | None) -> str | None:
        """The adapter that a request chooses with its `model`; None for the model itself.

        The name may have been unloaded since it was checked: then the engine says so.
        """
        return None if not model or model in self.base_names else model

    async def load(self, request: LoadAdapterRequest) -> str:
        """Returns what to say. Raises `ApiError` for what cannot be loaded, and leaves all as it was."""
        self._check_allowed()
        name = request.lora_name
        if name in self.base_names:
            raise ApiError(400, f"{name!r} is the model: give the adapter another name", param="lora_name")
        async with self._changing:
            await self.client.load_adapter(name, request.lora_path, replace_it=request.load_inplace)
            self._add(name, request.lora_path)
        return f"Success: LoRA adapter '{name}' added successfully."

    async def unload(self, request: UnloadAdapterRequest) -> str:
        """Returns what to say. Requests that run with the adapter end as they would. Raises `ApiError`."""
        self._check_allowed()
        name = request.lora_name
        async with self._changing:
            if name not in self.cards:
                raise ApiError(404, f"the adapter {name!r} is not loaded", param="lora_name")
            await self.client.unload_adapter(name)
            del self.cards[name]
        return f"Success: LoRA adapter '{name}' removed successfully."

    def _add(self, name: str, path: str, base: str | None = None) -> None:
        parent = base if base in self.base_names else self.base_names[0]
        self.cards[name] = ModelCard(id=name, root=path, parent=parent)

    def _check_allowed(self) -> None:
        if not self.client.config.enable_lora:
            raise ApiError(403, "adapters are not served: start the server with --enable-lora")
        if not self.may_change:
            raise ApiError(
                403,
                "clients may not load and unload adapters, since a path is any of this machine's: where they are to be "
                f"trusted with that, start the server with --allow-runtime-lora-updating, or {MAY_CHANGE}=1",
            )
