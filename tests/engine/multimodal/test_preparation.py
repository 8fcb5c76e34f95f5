"""Images are prepared beside the steps, before their request is scheduled, in a bounded room of memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from quire_engine.core.images import PlainTensor, PreparedImage, PromptImage
from quire_engine.core.messages import EngineOutput, EngineRequest
from quire_engine.llm import LLM
from quire_engine.memory_plan.image_encoders import preparing_bytes
from quire_engine.multimodal.image_files import checked
from quire_engine.multimodal.placeholders import expanded
from quire_engine.multimodal.preparation import ImagePreparer
from tests.engine.multimodal.asking import NEW_TOKENS, PARAMS, answers, embedder_of, load, preparer_of
from tests.engine.multimodal.llava_checkpoint import CASES, IMAGE, Llava, file_of, picture

pytestmark = pytest.mark.usefixtures("one_thread")

MADE = 100  # bytes of each image here
PEAK = preparing_bytes(MADE, 1)
TEXT = f"USER: {IMAGE}\nwhat is it? "


@pytest.fixture(scope="module")
def llava(llavas: Callable[[str], Llava]) -> Llava:
    return llavas(CASES[0])


def asked(llm: LLM, llava: Llava, name: str, *images: int) -> EngineRequest:
    tokens = llm.info.images
    assert tokens is not None
    files = [checked(file_of(picture(image))) for image in images]
    ids, found = expanded(llava.ids(TEXT * len(files)), files, tokens)
    return EngineRequest(name, ids, PARAMS, images=tuple(found))


def ask(llm: LLM, llava: Llava, name: str, *images: int) -> None:
    llm.core.add_request(asked(llm, llava, name, *images))


def run(llm: LLM, until: str | None = None) -> dict[str, list[EngineOutput]]:
    """The outputs, up to the last of `until`."""
    outputs: dict[str, list[EngineOutput]] = {}
    while llm.core.has_work():
        for output in llm.core.step():
            outputs.setdefault(output.request_id, []).append(output)
        llm.core.check_integrity()
        if until in outputs and outputs[until][-1].finish_reason is not None:
            break
    return outputs


def tokens(outputs: list[EngineOutput]) -> list[int]:
    return [token for output in outputs for token in output.new_token_ids]


def hold_up(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Have images wait, once they are begun, which the first event says, for the second one."""
    preparer = preparer_of(llm)
    begun, may_end = threading.Event(), threading.Event()
    prepare = preparer._prepare

    def waiting(image: PromptImage) -> PreparedImage:
        begun.set()
        assert may_end.wait(60)
        return prepare(image)

    monkeypatch.setattr(preparer, "_prepare", waiting)
    return begun, may_end


def test_other_streams_go_on_while_an_image_is_prepared(llava: Llava, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = load(llava)
    begun, may_end = hold_up(llm, monkeypatch)
    ask(llm, llava, "image", 1)
    assert begun.wait(60)
    llm.core.add_request(EngineRequest("text", llava.ids("once upon a time"), PARAMS))
    outputs = run(llm, until="text")
    assert tokens(outputs["text"]) == llava.answer("once upon a time", [], NEW_TOKENS)
    assert "image" not in outputs, "its image is not there yet"
    assert llm.core.stats().num_deferred == 1
    may_end.set()
    assert tokens(run(llm)["image"]) == llava.answer(TEXT, [picture(1)], NEW_TOKENS)
    assert (preparer_of(llm).used, embedder_of(llm).num_kept) == (0, 0)


def test_a_request_that_is_aborted_while_its_image_is_prepared_leaves_nothing(
    llava: Llava, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = load(llava)
    begun, may_end = hold_up(llm, monkeypatch)
    ask(llm, llava, "gone", 1)
    assert begun.wait(60)
    llm.core.abort(["gone"])
    assert not llm.core.has_work()
    may_end.set()
    ask(llm, llava, "next", 2)
    assert tokens(run(llm)["next"]) == llava.answer(TEXT, [picture(2)], NEW_TOKENS)
    assert wait_for_nothing(preparer_of(llm))


@pytest.mark.parametrize(("error", "kind"), [(ValueError("it is torn"), "invalid"), (MemoryError("full"), "fault")])
def test_an_image_that_cannot_be_prepared_ends_its_request_alone(
    llava: Llava, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: str
) -> None:
    llm = load(llava)
    preparer, bad = preparer_of(llm), picture(3)
    prepare = preparer._prepare

    def failing(image: PromptImage) -> PreparedImage:
        if image.data == file_of(bad):
            raise error
        return prepare(image)

    monkeypatch.setattr(preparer, "_prepare", failing)
    ask(llm, llava, "bad", 3)
    ask(llm, llava, "good", 1)
    outputs = run(llm)
    (ended,) = outputs["bad"]
    assert (ended.finish_reason, ended.error_kind) == ("error", kind)
    assert str(error) in (ended.error or "")
    assert tokens(outputs["good"]) == llava.answer(TEXT, [picture(1)], NEW_TOKENS)
    assert preparer.used == 0


def test_an_image_beyond_the_room_that_cannot_be_prepared_ends_its_request_alone(
    llava: Llava, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = load(llava)
    preparer, prepare = preparer_of(llm), preparer_of(llm)._prepare
    monkeypatch.setattr(preparer, "_room", 1)

    def failing(image: PromptImage) -> PreparedImage:
        if image.data == file_of(picture(3)):
            raise MemoryError("full")
        return prepare(image)

    monkeypatch.setattr(preparer, "_prepare", failing)
    ask(llm, llava, "bad", 1, 3)
    ask(llm, llava, "good", 1)
    outputs = run(llm)
    (ended,) = outputs["bad"]
    assert (ended.finish_reason, ended.error_kind, ended.error) == ("error", "fault", "images: MemoryError: full")
    assert tokens(outputs["good"]) == llava.answer(TEXT, [picture(1)], NEW_TOKENS)
    llm.core.check_integrity()
    assert (preparer.used, embedder_of(llm).num_kept) == (0, 0)


@pytest.mark.parametrize("twins", ["twice", "n"])
def test_nobody_is_answered_from_pages_where_an_image_could_not_be_prepared(
    llava: Llava, monkeypatch: pytest.MonkeyPatch, twins: str
) -> None:
    llm = load(llava)
    preparer, prepare = preparer_of(llm), preparer_of(llm)._prepare
    failing = True

    def full(image: PromptImage) -> PreparedImage:
        if failing and image.data == file_of(picture(3)):
            raise MemoryError("full")
        return prepare(image)

    monkeypatch.setattr(preparer, "_room", 1)
    monkeypatch.setattr(preparer, "_prepare", full)
    request = asked(llm, llava, "bad", 1, 3)
    llm.core.add_request(request)
    # Both begin in one step, so that the second has the pages, and the images in them, of the first.
    llm.core.add_request(request.another("twin", PARAMS) if twins == "n" else replace(request, request_id="twin"))
    ask(llm, llava, "good", 1)
    outputs = run(llm)
    for name in ("bad", "twin"):
        (ended,) = outputs[name]
        assert (ended.finish_reason, ended.error_kind, ended.error) == ("error", "fault", "images: MemoryError: full")
    assert tokens(outputs["good"]) == llava.answer(TEXT, [picture(1)], NEW_TOKENS)
    failing = False
    ask(llm, llava, "later", 1, 3)
    assert tokens(run(llm)["later"]) == llava.answer(TEXT * 2, [picture(1), picture(3)], NEW_TOKENS)
    assert (preparer.used, embedder_of(llm).num_kept) == (0, 0)


def test_an_image_that_the_prefix_cache_has_is_not_prepared_again(
    llava: Llava, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = load(llava)
    asked = [(TEXT + "and it is a long story", [picture(1)])]
    expected = answers(llm, asked)
    monkeypatch.setattr(preparer_of(llm), "_prepare", lambda image: pytest.fail("it was prepared"))
    assert answers(llm, asked) == expected


def test_an_image_of_another_size_than_its_tokens_were_counted_by_is_refused(llava: Llava) -> None:
    llm = load(llava)
    tokens = llm.info.images
    assert tokens is not None
    ids, (image,) = expanded(llava.ids(TEXT), [checked(file_of(picture(1)))], tokens)
    llm.core.add_request(EngineRequest("r", ids, PARAMS, images=(replace(image, width=image.width + 1),)))
    (ended,) = run(llm)["r"]
    assert f"counted by {image.width + 1} x" in (ended.error or "")


def plain_image(number: int) -> PromptImage:
    return PromptImage(b"", bytes([number]), 0, 1, 1, 1)


class Held:
    """Prepares an image when it may, and counts those that are under way."""

    def __init__(self) -> None:
        self.may_end = threading.Event()
        self.begun: list[bytes] = []

    def __call__(self, image: PromptImage) -> PreparedImage:
        self.begun.append(image.digest)
        assert self.may_end.wait(60)
        return {"x": PlainTensor("uint8", (1,), memoryview(image.digest))}


def wait_for_nothing(preparer: ImagePreparer) -> bool:
    preparer._pool.shutdown(wait=True)
    return preparer.used == 0


def test_images_wait_for_room_in_memory_and_those_made_keep_theirs() -> None:
    held = Held()
    preparer = ImagePreparer(held, lambda image: MADE, PEAK + MADE)
    first, second, third = (preparer.prepare([plain_image(n)]) for n in range(3))
    assert preparer.used == PEAK, "there is no room for a second one beside what the first takes"
    held.may_end.set()
    second.wait(60)
    assert second.done()
    assert held.begun == [b"\0", b"\1"], "the third would have to wait for what was made of the first two"
    assert preparer.used == 2 * MADE
    first.leave()
    third.wait(60)
    assert third.done()
    for pending in (second, third):
        pending.leave()
    assert wait_for_nothing(preparer)


def test_a_request_with_more_images_than_have_room_waits_for_those_that_have() -> None:
    held = Held()
    held.may_end.set()
    preparer = ImagePreparer(held, lambda image: MADE, 2 * PEAK)
    images = [plain_image(n) for n in range(5)]
    pending = preparer.prepare(images)
    pending.wait(60)
    assert pending.done()
    assert len(held.begun) == 2
    assert list(preparer.take(images)) == [image.digest for image in images]
    pending.leave()
    assert wait_for_nothing(preparer)


def test_an_image_that_nobody_waits_for_is_not_begun() -> None:
    held = Held()
    preparer = ImagePreparer(held, lambda image: MADE, PEAK)
    first, gone, last = (preparer.prepare([plain_image(n)]) for n in range(3))
    gone.leave()
    held.may_end.set()
    first.wait(60)
    first.leave()
    last.wait(60)
    assert held.begun == [b"\0", b"\2"]
    last.leave()
    assert wait_for_nothing(preparer)


def test_equal_images_are_prepared_once_and_kept_for_the_last_who_waits() -> None:
    held = Held()
    held.may_end.set()
    preparer = ImagePreparer(held, lambda image: MADE, 4 * PEAK)
    first, second = (preparer.prepare([plain_image(1), plain_image(1)]) for _ in range(2))
    second.wait(60)
    first.leave()
    assert preparer.used == MADE
    assert preparer.take([plain_image(1)])
    assert held.begun == [b"\1"]
    second.leave()
    assert wait_for_nothing(preparer)
