"""What the server needs once the engine is ready: tokenizer, chat template, limits, model cards."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import TemplateSyntaxError

from quire_engine.config import EngineConfig
from quire_engine.core.messages import EngineInfo
from quire_engine.server.answer_formats import AnswerFormats
from quire_engine.server.chat import Chat
from quire_engine.server.chat_images import ChatImages
from quire_engine.server.chat_prompts import ChatPrompts
from quire_engine.server.completions import Completions
from quire_engine.server.embeddings import Embeddings, Inputs
from quire_engine.server.engine_client import EngineClient
from quire_engine.server.generation import Generation
from quire_engine.server.image_download import ImageDownload
from quire_engine.server.image_urls import host_of_flag
from quire_engine.server.parameters import Parameters
from quire_engine.server.processor_template import processor_template
from quire_engine.server.prompts import Prompts
from quire_engine.server.protocol.models import ModelCard
from quire_engine.server.request_log import RequestLog
from quire_engine.server.responses import Responses
from quire_engine.server.scores import Scores
from quire_engine.server.service import Service
from quire_engine.server.tokenization import Tokenization
from quire_engine.server.vocabulary import VocabularyLesson
from quire_engine.startup_error import StartupError
from quire_engine.text.token_bytes import TokenBytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


async def complete(config: EngineConfig, service: Service) -> None:
    """Wait for the engine, then give the service what its routes need and open it.

    Raises `StartupError` for a chat template or a tokenizer that cannot be used.
    """
    template = _read_template(service.settings.chat_template)
    tokenizer = await _tokenizer(config, service.client)
    await service.client.ready.wait()
    info = service.client.info
    assert info is not None
    if template is not None:
        await asyncio.to_thread(_check_template, tokenizer, template, service.settings.chat_template)
    if template is None and info.images is not None and not tokenizer.chat_template:
        template = processor_template(Path(info.model))
    _fill(service, info, tokenizer, template)
    service.lifecycle.started()


async def _tokenizer(config: EngineConfig, client: EngineClient) -> PreTrainedTokenizerBase:
    """The tokenizer, loaded and held against the model while the engine loads its weights."""
    early = config.tokenizer or (config.model if Path(config.model).is_dir() else None)
    loading = asyncio.create_task(asyncio.to_thread(_load, early, config)) if early else None
    try:
        await client.model_read.wait()
        if client.model is None:  # the engine found no model, which is what is wrong, and not the tokenizer
            await client.ready.wait()
        assert client.model is not None
        tokenizer = await (loading or asyncio.to_thread(_load, client.model.directory, config))
    finally:
        if loading is not None:
            loading.cancel()
    _check_vocabulary(tokenizer, client.model.vocab_size, early or client.model.directory)
    return tokenizer


def _load(name: str, config: EngineConfig) -> PreTrainedTokenizerBase:
    from quire_engine.text.tokenizer import load_tokenizer

    revision = config.revision if name == config.model else None
    try:
        return load_tokenizer(
            name, revision=revision, trust_remote_code=config.trust_remote_code, download_dir=config.download_dir
        )
    except ValueError as error:
        raise StartupError("InvalidTokenizer", str(error)) from error


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int, name: str) -> None:
    from quire_engine.text.tokenizer import check_vocabulary

    try:
        check_vocabulary(tokenizer, vocab_size, name)
    except ValueError as error:
        raise StartupError("InvalidTokenizer", str(error)) from error


def _fill(service: Service, info: EngineInfo, tokenizer: PreTrainedTokenizerBase, template: str | None) -> None:
    limit = min(info.max_model_len, info.num_blocks * info.block_size)
    defaults = dict(info.sampling_defaults)
    most = defaults.pop("max_tokens", limit)
    prompts = Prompts(tokenizer, limit, info.vocab_size, template, longest_answer=int(most))
    service.cards = [ModelCard(id=name, root=info.model, max_model_len=limit) for name in service.model_names]
    service.metrics.set_info(info)
    service.client.on_step = service.metrics.observe_step
    settings = service.settings
    download = ImageDownload(map(host_of_flag, settings.allowed_media_domains), settings.media_fetch_timeout)
    images = ChatImages(info.images, tokenizer, template, download, info.no_images)
    chat_prompts = ChatPrompts(prompts, images)
    service.tokenization = Tokenization(prompts, chat_prompts, tokenizer, limit)
    if info.pooling is not None:
        inputs = Inputs(prompts, tokenizer, limit)
        service.embeddings = Embeddings(service.client, inputs, service.metrics, info.pooling)
        service.scores = Scores(service.embeddings)
        return
    requests = RequestLog(wanted=not settings.disable_log_requests)
    lesson = VocabularyLesson(service.client, tokenizer, info.vocab_size)
    generation = Generation(service.client, tokenizer, service.metrics, requests, lesson, service.adapters)
    use_priority = service.client.config.scheduling_policy == "priority"
    parameters = Parameters(tokenizer, info.vocab_size, use_priority=use_priority, defaults=defaults)
    tokens = TokenBytes(tokenizer)
    service.completions = Completions(generation, prompts, parameters, tokens)
    formats = AnswerFormats(
        tokenizer, settings.tool_call_parser, settings.reasoning_parser, auto=settings.enable_auto_tool_choice
    )
    service.chat = Chat(generation, prompts, parameters, tokens, chat_prompts, formats, settings.response_role)
    service.responses = Responses(service.chat, tokens)


def _read_template(file: str | None) -> str | None:
    if file is None:
        return None
    try:
        return Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise StartupError("InvalidFlag", f"--chat-template {file} cannot be read: {error.strerror}") from error


def _check_template(tokenizer: PreTrainedTokenizerBase, template: str, file: str | None) -> None:
    """Find a template that does not parse before the first request does. Some refuse this chat: that is theirs."""
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], chat_template=template, tokenize=False)
    except TemplateSyntaxError as error:
        raise StartupError("InvalidFlag", f"--chat-template {file}, line {error.lineno}: {error.message}") from error
    except Exception as error:  # noqa: BLE001  a template is its author's code: it raises what it likes
        log.debug("the chat template refuses a lone greeting: %s", error)
