"""What the server needs once the engine is ready: tokenizer, chat template, limits, model cards."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from quire_engine.config import EngineConfig
from quire_engine.core.messages import EngineInfo
from quire_engine.server.app import Service
from quire_engine.server.chat import Chat
from quire_engine.server.completions import Completions
from quire_engine.server.generation import Generation
from quire_engine.server.prompts import Prompts
from quire_engine.server.protocol import ModelCard

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


async def complete(config: EngineConfig, service: Service) -> None:
    """Wait for the engine, then give the service what its routes need and open it.

    Raises `ValueError` for a chat template or a tokenizer that cannot be used.
    """
    template = _read_template(service.settings.chat_template)
    early = config.tokenizer or (config.model if Path(config.model).is_dir() else None)
    loading = asyncio.create_task(asyncio.to_thread(_load, early, config)) if early else None
    try:
        await service.client.ready.wait()
    except asyncio.CancelledError:
        if loading is not None:
            loading.cancel()
        raise
    info = service.client.info
    assert info is not None
    tokenizer = await (loading or asyncio.to_thread(_load, info.model, config))
    _fill(service, info, tokenizer, template)
    service.lifecycle.started()


def _load(name: str, config: EngineConfig) -> PreTrainedTokenizerBase:
    from quire_engine.text.tokenizer import load_tokenizer

    revision = config.revision if name == config.model else None
    return load_tokenizer(
        name, revision=revision, trust_remote_code=config.trust_remote_code, download_dir=config.download_dir
    )


def _fill(service: Service, info: EngineInfo, tokenizer: PreTrainedTokenizerBase, template: str | None) -> None:
    limit = min(info.max_model_len, info.num_blocks * info.block_size)
    prompts = Prompts(tokenizer, limit, info.vocab_size, template)
    generation = Generation(service.client, tokenizer, service.metrics)
    service.completions = Completions(generation, prompts)
    service.chat = Chat(generation, prompts, service.settings.response_role)
    service.cards = [ModelCard(id=name, root=info.model, max_model_len=limit) for name in service.model_names]
    service.metrics.set_info(info)
    service.client.on_step = service.metrics.observe_step


def _read_template(file: str | None) -> str | None:
    if file is None:
        return None
    try:
        return Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"--chat-template {file} cannot be read: {error.strerror}") from error
