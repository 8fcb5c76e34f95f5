"""From the messages of a chat to prompt tokens and the images among them."""

from __future__ import annotations

from quire_engine.core.images import PromptImage
from quire_engine.server.chat_images import ChatImages
from quire_engine.server.errors import ApiError
from quire_engine.server.prompts import Prompts, Side
from quire_engine.server.protocol.chat import ChatPrompt


class ChatPrompts:
    """Renders chats, with their images, for one model."""

    def __init__(self, prompts: Prompts, images: ChatImages) -> None:
        self._prompts, self._images = prompts, images

    async def of(
        self, chat: ChatPrompt, *, copies: int = 1, keep: int | None = None, side: Side | None = None
    ) -> tuple[list[int], tuple[PromptImage, ...]]:
        """The tokens of a chat's prompt, and the images in it, of which each of `copies` answers gets its own.

        `keep` and `side` are as in `Prompts.truncated`. Raises `ApiError` for messages that the model cannot take.
        """
        files = await self._images.files(chat.messages, copies)
        if files and keep is not None:
            raise ApiError(400, "truncate_prompt_tokens would cut images: leave it out", param="truncate_prompt_tokens")
        messages = [m.as_template_input(self._images.token, in_parts=self._images.in_parts) for m in chat.messages]
        ids, images = self._images.expanded(await self._prompts.from_chat(chat, messages), files)
        return self._prompts.truncated(ids, keep, side), tuple(images)
