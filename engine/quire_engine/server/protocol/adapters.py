"""The bodies of /v1/load_lora_adapter and /v1/unload_lora_adapter, which are vLLM's."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from quire_engine.server.protocol.fields import Text

Name = Annotated[Text, Field(min_length=1, max_length=253)]


class LoadAdapterRequest(BaseModel):
    model_config = ConfigDict(extra="allow")

    lora_name: Name
    lora_path: Annotated[Text, Field(min_length=1, max_length=4096)]
    load_inplace: bool = False


class UnloadAdapterRequest(BaseModel):
    model_config = ConfigDict(extra="allow")

    lora_name: Name
