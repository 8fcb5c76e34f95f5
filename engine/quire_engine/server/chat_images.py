"""The images of a chat: read, checked and counted, in one process with HTTP, before the engine hears of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from quire_engine.core.images import TEXT_ALONE, ImageTokens, PromptImage
from quire_engine.multimodal.data_url import bytes_of
from quire_engine.multimodal.image_files import ImageFile, checked
from quire_engine.multimodal.placeholders import expanded
from quire_engine.server.errors import ApiError
from quire_engine.server.image_download import ImageDownload
from quire_engine.server.image_urls import is_fetched
from quire_engine.server.protocol.chat import ChatMessage
from quire_engine.text.image_parts import takes_parts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_AT_ONCE = 2  # a large image takes a hundred megabytes while it is looked at
_MOST_BYTES = 128 << 20  # that one request sends to the engine


class ChatImages:
    """Takes the images out of chats to one model."""

    def __init__(
        self,
        tokens: ImageTokens | None,
        tokenizer: PreTrainedTokenizerBase,
        template: str | None = None,
        download: ImageDownload | None = None,
        no_images: str = TEXT_ALONE,
    ) -> None:
        """`tokens` is None where no images are taken, for the reason in `no_images`.

        Without a `download` none is fetched.
        """
        self._tokens, self._download, self._no_images = tokens, download or ImageDownload(), no_images
        self._free = asyncio.Semaphore(_AT_ONCE)
        self.token = None if tokens is None else str(tokenizer.convert_ids_to_tokens(tokens.token_id))
        self.in_parts = self.token is not None and takes_parts(tokenizer, template, self.token)
        """Whether the template puts image tokens where it finds parts that are images."""

    async def files(self, messages: list[ChatMessage], copies: int) -> list[ImageFile]:
        """The image files in `messages`, in their order, of which each of `copies` answers gets its own.

        Raises `ApiError` that names the part that is wrong.
        """
        urls = [
            (f"messages.{i}.content.{j}.image_url.url", part.image_url.url)
            for i, message in enumerate(messages)
            for j, part in enumerate(message.content if isinstance(message.content, list) else [])
            if part.image_url is not None
        ]
        if not urls:
            return []
        field = urls[0][0]
        if self._tokens is None:
            raise ApiError(400, f"{field}: {self._no_images}: leave the image out", param=field)
        if len(urls) > self._tokens.most:
            field = urls[self._tokens.most][0]
            raise ApiError(
                400,
                f"{field}: there are {len(urls)} images and at most {self._tokens.most} may be in a prompt: leave some "
                "out, or start the server with a higher --limit-mm-per-prompt",
                param=field,
            )
        reading = [asyncio.ensure_future(self._file(field, url, self._tokens)) for field, url in urls]
        try:
            files = await asyncio.gather(*reading)
        finally:  # the first that fails ends the others
            for one in reading:
                one.cancel()
        size = sum(len(file.data) for file in files)
        if size * copies > _MOST_BYTES:
            raise ApiError(
                400,
                f"the images have {size} bytes, for {copies} answers: the product must be at most {_MOST_BYTES}",
                param="messages" if copies == 1 else "n",
            )
        return files

    def expanded(self, ids: list[int], files: list[ImageFile]) -> tuple[list[int], list[PromptImage]]:
        """The tokens of a rendered chat with as many for each image as it takes. Raises `ApiError`."""
        if self._tokens is None:
            return ids, []
        try:
            return expanded(ids, files, self._tokens)
        except ValueError as error:
            raise ApiError(400, f"{error}: texts must not hold {self.token}", param="messages") from error

    async def _file(self, field: str, url: str, tokens: ImageTokens) -> ImageFile:
        try:
            data = await self._download.fetch(url) if is_fetched(url) else None
            async with self._free:
                return await asyncio.to_thread(_read, url, data, tokens)
        except ValueError as error:
            raise ApiError(400, f"{field}: {error}", param=field) from error


def _read(url: str, fetched: bytes | None, tokens: ImageTokens) -> ImageFile:
    file = checked(bytes_of(url) if fetched is None else fetched)
    tokens.count.of(file.width, file.height)  # whether the model takes an image of this size
    return file
