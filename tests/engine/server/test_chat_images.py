"""Where chat templates put images, whichever way they are written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from quire_engine.core.images import FixedCount, ImageTokens
from quire_engine.server.chat_images import ChatImages
from quire_engine.server.processor_template import processor_template
from quire_engine.server.protocol.chat import ChatMessage
from tests.engine.multimodal.llava_checkpoint import IMAGE, TEMPLATE, make_llava

pytestmark = pytest.mark.usefixtures("one_thread")

PLAIN = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "look"},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "what is "},
            {"type": "image_url", "image_url": {"url": "data:,"}},
            {"type": "text", "text": "this?"},
        ],
    },
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoTokenizer.from_pretrained(make_llava(tmp_path_factory.mktemp("llava")).directory)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (PLAIN, f"system: look\nuser: what is {IMAGE}\nthis?\n"),
        (TEMPLATE, f"SYSTEM: look USER: {IMAGE}\nwhat is  this? "),
    ],
    ids=["plain texts", "parts"],
)
def test_images_and_texts_are_given_to_a_template_as_it_reads_them(
    tokenizer: Any, template: str, expected: str
) -> None:
    images = ChatImages(ImageTokens(96, FixedCount(9), 1), tokenizer, template)
    messages = [ChatMessage(**message) for message in CHAT]
    given = [message.as_template_input(images.token, in_parts=images.in_parts) for message in messages]
    assert tokenizer.apply_chat_template(given, chat_template=template, tokenize=False) == expected


def test_a_model_of_text_has_its_parts_joined(tokenizer: Any) -> None:
    images = ChatImages(None, tokenizer)
    message = ChatMessage(role="user", content=[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])  # type: ignore[list-item]  # plain dicts, as they are sent
    given = message.as_template_input(images.token, in_parts=images.in_parts)
    assert given == {"role": "user", "content": "ab"}


@pytest.mark.parametrize(
    ("written", "found"),
    [(json.dumps({"chat_template": PLAIN}), PLAIN), ("{", None), ("[]", None), ('{"chat_template": 1}', None)],
)
def test_a_template_beside_the_tokenizer_is_found(tmp_path: Path, written: str, found: str | None) -> None:
    assert processor_template(tmp_path) is None
    (tmp_path / "chat_template.json").write_text(written)
    assert processor_template(tmp_path) == found
