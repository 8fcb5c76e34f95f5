"""From the messages of a chat to prompt tokens and the images among them."""

from __future__ import annotations

from quire_engine.core.images import PromptImage
from quire_engine.multimodal.image_files import ImageFile
from quire_engine.server.chat_images import ChatImages
from quire_engine.server.errors import ApiError
from quire_engine.server.prompts import Prompts, PromptTooLongError, Side
from quire_engine.server.protocol.chat import ChatPrompt
from quire_engine.server.turns import beginnings, from_beginning

Prompt = tuple[list[int], tuple[PromptImage, ...]]


class ChatPrompts:
    """Renders chats, with their images, for one model."""

    def __init__(self, prompts: Prompts, images: ChatImages) -> None:
        self._prompts, self._images = prompts, images

    async def of(
        self, chat: ChatPrompt, *, copies: int = 1, keep: int | None = None, side: Side | None = None
    ) -> Prompt:
        """The tokens of a chat's prompt, and the images in it, of which each of `copies` answers gets its own.

        `keep` and `side` are as in `Prompts.truncated`. Raises `ApiError` for messages that the model cannot take.
        """
        files = await self._images.files(chat.messages, copies)
        if files and keep is not None:
            raise ApiError(400, "truncate_prompt_tokens would cut images: leave it out", param="truncate_prompt_tokens")
        ids, images = await self._rendered(chat, files, 0)
        return self._prompts.truncated(ids, keep, side), images

    async def shortened(self, chat: ChatPrompt, *, answer: int | None, copies: int = 1) -> Prompt:
        """As `of`, without as many of the oldest messages as leaves room for `answer` tokens in the context.

        Where all that may be left out does not make that room, or none is asked for, it is for an answer of usual
        length, and where that cannot be either, the shortest prompt.
        """
        files = await self._images.files(chat.messages, copies)
        usual = self._prompts.usual_answer
        found = await self._longest(chat, files, answer or usual)
        if found is None and answer is not None and answer > usual:  # which will be cut
            found = await self._longest(chat, files, usual)
        return found or await self._rendered(chat, files, beginnings(chat.messages)[-1])

    async def _longest(self, chat: ChatPrompt, files: list[ImageFile], answer: int) -> Prompt | None:
        """The prompt of the most messages that leaves room for the answer; None where none does."""
        starts = beginnings(chat.messages)
        end, at, found = len(starts), 0, None  # most chats fit whole: the first is tried first
        low = 0
        while low < end:
            try:
                prompt = await self._rendered(chat, files, starts[at])
                fits = self._prompts.leaves_room(prompt[0], answer)
            except PromptTooLongError:
                fits = False
            if fits:
                end, found = at, prompt
            else:
                low = at + 1
            at = (low + end) // 2
        return found

    async def _rendered(self, chat: ChatPrompt, files: list[ImageFile], start: int) -> Prompt:
        """The prompt of the messages that stay from `start` on; `files` are the images of all."""
        token, in_parts = self._images.token, self._images.in_parts
        stay = range(len(chat.messages)) if start == 0 else from_beginning(chat.messages, start)
        if files and start:
            owners = [i for i, message in enumerate(chat.messages) for _ in range(message.num_images)]
            kept = set(stay)
            files = [file for file, owner in zip(files, owners, strict=True) if owner in kept]
        messages = [chat.messages[i].as_template_input(token, in_parts=in_parts) for i in stay]
        ids, images = self._images.expanded(await self._prompts.from_chat(chat, messages), files)
        return ids, tuple(images)
