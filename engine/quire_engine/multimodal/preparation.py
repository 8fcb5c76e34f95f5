"""Images are prepared by a few threads beside the engine's loop, in a bounded room of memory."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from quire_engine.core.images import PreparedImage, PromptImage
from quire_engine.memory_plan.image_encoders import preparing_bytes

_THREADS = 2

Prepare = Callable[[PromptImage], PreparedImage]


@dataclass(eq=False, slots=True)
class _Work:
    """An image that is wanted."""

    image: PromptImage
    made: int  # bytes
    peak: int  # bytes, while it is made
    num_waiting: int = 0  # requests
    begun: bool = False
    ended: bool = False
    future: Future[PreparedImage] = field(default_factory=Future)


class ImagePreparer:
    """The core's `ImagePreparation`: first come, first prepared. Equal images of several requests are prepared once.

    An image is begun when it has room beside what is being made, and what was made and is not computed yet; the first
    is begun in any case when there is nothing else. What a request's images take beyond the room of all is prepared
    when it is needed, within the step.
    """

    def __init__(self, prepare: Prepare, made_bytes: Callable[[PromptImage], int], room: int) -> None:
        """`prepare` raises `ValueError` for what is no such image. `made_bytes` says what it makes; `room` is in bytes.

        Threads are started with the first image.
        """
        self._prepare = prepare
        self._made_bytes = made_bytes
        self._room = room
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="images")
        self._lock = threading.Lock()
        self._works: dict[bytes, _Work] = {}  # by digest
        self._queue: deque[_Work] = deque()  # those not begun
        self._used = 0

    @property
    def used(self) -> int:
        """Bytes that are counted now, for what is being made and what was made."""
        return self._used

    def prepare(self, images: Sequence[PromptImage]) -> Pending:
        works: list[_Work] = []
        total = 0
        with self._lock:
            for image in {image.digest: image for image in images}.values():
                work = self._works.get(image.digest)
                if work is None:
                    made = self._made_bytes(image)
                    work = _Work(image, made, preparing_bytes(made, image.width * image.height))
                total += work.peak
                if works and total > self._room:
                    break
                if image.digest not in self._works:
                    self._works[image.digest] = work
                    self._queue.append(work)
                work.num_waiting += 1
                works.append(work)
            self._begin()
        return Pending(self, works)

    def take(self, images: Sequence[PromptImage]) -> dict[bytes, PreparedImage]:
        taken: dict[bytes, PreparedImage] = {}
        for image in images:
            if image.digest in taken:
                continue
            with self._lock:
                work = self._works.get(image.digest)
                begun = work is not None and work.begun
            taken[image.digest] = work.future.result() if work is not None and begun else self._prepare(image)
        return taken

    def leave(self, works: Sequence[_Work]) -> None:
        """One request fewer waits for each of `works`."""
        with self._lock:
            for work in works:
                work.num_waiting -= 1
                if work.num_waiting:
                    continue
                del self._works[work.image.digest]
                if not work.begun:
                    self._queue.remove(work)
                elif work.ended:
                    self._used -= work.made
            self._begin()

    def _begin(self) -> None:
        """Begin what has room, in order. The lock is held."""
        while self._queue and (self._used == 0 or self._used + self._queue[0].peak <= self._room):
            work = self._queue.popleft()
            work.begun = True
            self._used += work.peak
            self._pool.submit(self._run, work)

    def _run(self, work: _Work) -> None:
        if not work.num_waiting:  # they left before its turn came
            self._end(work, 0)
            work.future.cancel()
            return
        try:
            prepared = self._prepare(work.image)
        except Exception as error:  # noqa: BLE001  those who wait for the image get it
            self._end(work, 0)
            work.future.set_exception(error)
        else:
            self._end(work, work.made)
            work.future.set_result(prepared)

    def _end(self, work: _Work, made: int) -> None:
        with self._lock:
            work.ended, work.made = True, made
            self._used += (made if work.num_waiting else 0) - work.peak
            self._begin()


class Pending:
    """The images of one request: the core's `PendingImages`."""

    def __init__(self, preparer: ImagePreparer, works: Sequence[_Work]) -> None:
        self._preparer = preparer
        self._works = works

    def done(self) -> bool:
        return all(work.future.done() for work in self._works)

    def wait(self, seconds: float) -> None:
        wait([work.future for work in self._works], seconds)

    def check(self) -> None:
        for work in self._works:
            error = work.future.exception()
            if error is not None:
                raise error

    def leave(self) -> None:
        self._preparer.leave(self._works)
        self._works = ()
