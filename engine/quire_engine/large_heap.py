"""A process's own memory: in large pages where Linux has some, and left to no collector once its start is over.

What answers a request lies scattered over many small pages. Each is looked up again after the weights have passed, and
on a virtual machine whose host takes memory back that was not touched for seconds each is fetched again as well.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import threading
import time
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)

LARGE_PAGE = 2 << 20
_COLLAPSE = 25  # MADV_COLLAPSE, of Linux since 6.1
_PAUSE = 1.0  # seconds: behind the first answer, which somebody waits for
_ALLOWED = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def lay_arenas_together() -> None:
    """Have Python's small objects lie side by side from here on, in large pages. To be called before much is imported.

    Nothing happens where the library for it was not built, or an administrator wants no large pages.
    """
    file = next(Path(__file__).parent.glob("_arenas.*.so"), None)
    if file is None or not _are_allowed():
        return
    setter = ctypes.cast(ctypes.pythonapi.PyObject_SetArenaAllocator, ctypes.c_void_p)
    with suppress(OSError, AttributeError):  # another machine's library: arenas stay where Python has them
        ctypes.CDLL(str(file)).lay_arenas_together(setter)


def settle() -> None:
    """To be called when all is there that a start makes. A thread beside puts pages together, a second later."""
    gc.collect()
    gc.freeze()  # what is there now stays, and to look through it again and again takes as long as many tokens
    with suppress(RuntimeError):  # no thread can be started: pages stay small
        threading.Thread(target=_put_together_later, name="large-heap", daemon=True).start()


def _put_together_later() -> None:
    time.sleep(_PAUSE)
    put_together()


def put_together() -> None:
    """Have memory that is in use in large pages, as far as they can be, unless an administrator said never."""
    if not _are_allowed():
        return
    ranges = worth_it(Path("/proc/self/smaps").read_text())
    begun, madvise = time.monotonic(), ctypes.CDLL(None).madvise
    for start, end in ranges:  # an older kernel refuses, and some pages cannot be moved: they stay small
        madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _COLLAPSE)
    size = sum(end - start for start, end in ranges) >> 20
    log.debug("%d MiB put into large pages in %.0f ms", size, 1000 * (time.monotonic() - begun))


def _are_allowed() -> bool:
    try:
        return "[never]" not in _ALLOWED.read_text()
    except OSError:  # no Linux, or none with large pages
        return False


def worth_it(smaps: str) -> list[tuple[int, int]]:
    """Of a process's `smaps` the ranges of whole large pages that are in use for the most part, and small so far.

    Stacks, of which next to nothing is used, and files are not among them.
    """
    found, start, end, is_own, sizes = [], 0, 0, False, dict[str, int]()
    for line in [*smaps.splitlines(), "0-0 ---p 0 0:0 0"]:
        name, *values = line.split()
        if name.endswith(":"):
            sizes[name] = int(values[0]) if values[0].isdigit() else 0
            continue
        small = sizes.get("Rss:", 0) - sizes.get("AnonHugePages:", 0)
        if is_own and start < end and 2 * small > sizes.get("Size:", 0) - sizes.get("AnonHugePages:", 0):
            found.append((start, end))
        first, last = (int(address, 16) for address in name.split("-"))
        start, end = -(-first // LARGE_PAGE) * LARGE_PAGE, last // LARGE_PAGE * LARGE_PAGE
        is_own = values[0] == "rw-p" and values[3] == "0" and values[4:] in ([], ["[heap]"])
        sizes = {}
    return found
