"""Images in chat completions, over HTTP, with OpenAI's own client."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import transformers
from PIL import Image

from tests.engine.multimodal.llava_checkpoint import IMAGE, Llava, file_of, make_llava, picture
from tests.engine.multimodal.phi4_checkpoint import make_phi4
from tests.engine.multimodal.qwen2_checkpoint import make_qwen2
from tests.engine.server.conftest import Server, StartServer, launch
from tests.engine.server.image_host import IMAGE_FILE, ImageHost, image_host

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Llava:
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # it has no types
    return make_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def host() -> Iterator[ImageHost]:
    with image_host() as started:
        yield started


@pytest.fixture(scope="module")
def seeing(llava: Llava, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    flags = ("--served-model-name=llava", "--dtype=float32", "--limit-mm-per-prompt=image=2")
    flags += ("--allowed-media-domains", "127.0.0.1", "images.example.com", "--media-fetch-timeout=5")
    started = launch(tmp_path_factory.mktemp("server"), llava.directory, *flags)
    started.wait_until_ready()
    yield started
    started.stop()


def url_of(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def shown(text: str, *urls: str) -> list[Any]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def ask(server: Server, messages: list[Any], model: str = "llava", **more: Any) -> Any:
    return server.client().chat.completions.create(
        model=model, messages=messages, temperature=0.0, max_tokens=8, **more
    )


def refused(server: Server, messages: list[Any], model: str = "llava", **more: Any) -> openai.BadRequestError:
    with pytest.raises(openai.BadRequestError) as refusal:
        ask(server, messages, model, **more)
    assert server.health() == 200
    return refusal.value


def test_a_response_that_drops_a_turn_drops_its_image_and_keeps_the_next(seeing: Server) -> None:
    def turn(shade: int, text: str) -> Any:
        image = {"type": "input_image", "image_url": url_of(file_of(picture(shade)))}
        return {"role": "user", "content": [image, {"type": "input_text", "text": text}]}

    def respond(items: list[Any]) -> Any:
        return seeing.client().responses.create(
            model="llava", input=items, temperature=0.0, max_output_tokens=8, truncation="auto"
        )

    limit = seeing.client().models.list().data[0].max_model_len  # type: ignore[attr-defined]  # a field of vLLM's
    past = [turn(0, "what is it? " * limit), {"role": "assistant", "content": "a cat"}]
    cut, alone = respond([*past, turn(1, "and now?")]), respond([turn(1, "and now?")])
    assert (cut.output_text, cut.usage.input_tokens) == (alone.output_text, alone.usage.input_tokens)
    assert cut.output_text != respond([turn(0, "and now?")]).output_text


@pytest.mark.parametrize("count", [0, 1, 2])
def test_chats_with_images_are_answered_as_transformers_answers_them(llava: Llava, seeing: Server, count: int) -> None:
    images = [picture(i) for i in range(count)]
    rendered = "USER: " + f"{IMAGE}\n" * count + "what is it? ASSISTANT:"
    expected = llava.processor.tokenizer.decode(llava.answer(rendered, images, 8))
    answer = ask(seeing, shown("what is it?", *(url_of(file_of(image)) for image in images)))
    assert answer.choices[0].message.content == expected
    assert answer.usage.prompt_tokens == len(llava.ids(rendered)) + count * 8


def test_a_plain_text_content_is_rendered_in_parts_too(llava: Llava, seeing: Server) -> None:
    expected = llava.processor.tokenizer.decode(llava.answer("USER: hello ASSISTANT:", [], 8))
    assert ask(seeing, [{"role": "user", "content": "hello"}]).choices[0].message.content == expected


def test_answers_about_images_are_streamed(seeing: Server) -> None:
    messages = shown("what is it?", url_of(file_of(picture(7), "JPEG"), "jpeg"))
    whole = ask(seeing, messages).choices[0].message.content
    pieces = [chunk.choices[0].delta.content or "" for chunk in ask(seeing, messages, stream=True)]
    assert "".join(pieces) == whole


def _png_of(width: int, height: int) -> bytes:
    """A header that promises more pixels than its data has."""
    data = bytearray(file_of(Image.new("L", (1, 1))))
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


WRONG = {
    "not an image": (url_of(b"hello, this is no image"), "this is no image"),
    "empty": (url_of(b""), "the image is empty"),
    "cut off": (url_of(file_of(picture(1, 300, 300))[:-2000]), "the image cannot be decoded"),
    "a cut off JPEG": (url_of(file_of(picture(1, 300, 300), "JPEG")[:-2000], "jpeg"), "the image cannot be decoded"),
    "a bomb": (url_of(_png_of(100_000, 100_000)), "pixels: it must be at most 33554432"),
    "too many pixels": (url_of(_png_of(8_000, 8_000)), "8000 x 8000 pixels: it must be at most 33554432"),
    "a line": (url_of(file_of(Image.new("L", (1, 101)))), "1 x 101 pixels: a side must be at most 100 times the other"),
    "too many bytes": (url_of(b"\x89PNG" + bytes(21 << 20)), "bytes: it must be at most 20971520"),
    "not base64": ("data:image/png;base64,%%%", "base64 cannot be read"),
    "without base64": ("data:image/png,abc", "not in base64"),
    "a text": ("data:text/plain;base64,aGVsbG8=", "no type of an image"),
    "over the network": ("https://example.com/cat.png", "no image is fetched"),
    "a file": ("file:///etc/passwd", "no image is fetched"),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_image_that_cannot_be_taken_is_a_400_that_names_the_part(seeing: Server, name: str) -> None:
    url, reason = WRONG[name]
    error = refused(seeing, shown("what is it?", url_of(file_of(picture(1))), url))
    assert error.param == "messages.0.content.1.image_url.url"
    assert reason in error.message


def test_an_image_at_an_allowed_host_is_answered_as_the_same_file_is(seeing: Server, host: ImageHost) -> None:
    here = url_of(IMAGE_FILE)
    expected = ask(seeing, shown("which?", here, here)).choices[0].message.content
    assert ask(seeing, shown("which?", host.url("/to/cat"), here)).choices[0].message.content == expected


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/none", "127.0.0.1 answered with status 404"),
        ("/page", "127.0.0.1 sent 'text/html; charset=utf-8', which is no type of an image"),
        ("/false", "this is no image"),
        ("/long", "the image at 127.0.0.1 has more than 20971520 bytes"),
        ("/slow", "127.0.0.1 did not send the image within 5 s"),
        ("/to/http://localhost/cat", "127.0.0.1 redirects to localhost, and no image is fetched from there unless"),
    ],
)
def test_an_image_that_cannot_be_fetched_is_a_400_that_names_the_part(
    seeing: Server, host: ImageHost, path: str, message: str
) -> None:
    error = refused(seeing, shown("what is it?", host.url("/cat"), host.url(path)))
    assert error.param == "messages.0.content.1.image_url.url"
    assert message in error.message


def test_more_images_than_the_limit_are_a_400(seeing: Server) -> None:
    error = refused(seeing, shown("what is it?", *[url_of(file_of(picture(1)))] * 3))
    assert "there are 3 images and at most 2" in error.message
    assert error.param == "messages.0.content.2.image_url.url"


def test_an_image_token_in_a_text_is_a_400(seeing: Server) -> None:
    error = refused(seeing, shown(f"{IMAGE} what is it?", url_of(file_of(picture(1)))))
    assert f"texts must not hold {IMAGE}" in error.message


def test_truncating_a_prompt_with_images_is_a_400(seeing: Server) -> None:
    messages = shown("what is it?", url_of(file_of(picture(1))))
    assert refused(seeing, messages, extra_body={"truncate_prompt_tokens": 5}).param == "truncate_prompt_tokens"


def test_an_image_for_a_model_of_text_is_a_400(server: Server) -> None:
    error = refused(server, shown("what is it?", url_of(file_of(picture(1)))), "tiny")
    assert "this model takes text alone" in error.message
    assert error.param == "messages.0.content.0.image_url.url"


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ({"type": "image_url"}, "a part of the type image_url has image_url"),
        ({"type": "text", "text": "hi", "image_url": {"url": "data:,"}}, "a part of the type text has text"),
        ({"type": "input_audio", "input_audio": {}}, "input_audio is not supported: only parts of the types"),
        ({"type": "video_url", "video_url": {"url": "data:,"}}, "video_url is not supported: only parts of the types"),
        ({"type": "image_url", "image_url": {}}, "url"),
    ],
)
def test_a_part_that_is_none_is_a_400_that_names_it(seeing: Server, part: Any, reason: str) -> None:
    body = {"model": "llava", "messages": [{"role": "user", "content": [part]}]}
    answer = httpx.post(f"{seeing.url}/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert reason in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"].startswith("messages.0.content.0")


def test_the_http_process_holds_no_torch_after_an_image(seeing: Server) -> None:
    ask(seeing, shown("what is it?", url_of(file_of(picture(9)))))
    assert "libtorch" not in Path(f"/proc/{seeing.process.pid}/maps").read_text()


def test_large_images_for_many_answers_are_a_400(seeing: Server) -> None:
    large = url_of(file_of(picture(1, 1200, 1000)))
    error = refused(seeing, shown("what is it?", large), n=100)
    assert error.param == "n"
    assert "for 100 answers: the product must be at most 134217728" in error.message


@pytest.mark.parametrize("family", ["Phi-4", "Qwen2-VL"])
def test_images_of_any_shape_are_answered_by_models_that_cut_or_resize_them(
    start_server: StartServer, tmp_path: Path, family: str
) -> None:
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # it has no types
    made = make_phi4(tmp_path) if family == "Phi-4" else make_qwen2(tmp_path)
    image, place = picture(3, 130, 70), "<|image|>" if family == "Phi-4" else "<|image_pad|>"
    rendered = f"<user>{place}what is it?"
    server = start_server("--dtype=float32", model=tmp_path)
    answer = ask(server, shown("what is it?", url_of(file_of(image))), "tiny", logit_bias={"96": -100})
    assert answer.choices[0].message.content == made.tokenizer.decode(made.answer(rendered, [image], 8))
    assert answer.usage.prompt_tokens == made.inputs(rendered, [image])["input_ids"].shape[1]
