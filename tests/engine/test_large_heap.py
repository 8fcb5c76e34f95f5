"""What a process holds is in large pages once its start is over."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from quire_engine.large_heap import LARGE_PAGE, worth_it

_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_BASE = 1 << 30


def mapping(start: int, end: int, what: str, *, rss: int, large: int = 0) -> str:
    """As Linux writes it. Sizes in KiB; `what` is its permissions, inode and name."""
    permissions, inode, *name = what.split()
    lines = [f"{_BASE + start:x}-{_BASE + end:x} {permissions} 00000000 00:00 {inode} {' '.join(name)}"]
    lines += [f"Size: {(end - start) >> 10} kB", f"Rss: {rss} kB", f"AnonHugePages: {large} kB", "VmFlags: rd wr mr"]
    return "\n".join(lines) + "\n"


def test_memory_of_its_own_that_is_in_use_is_worth_it_as_far_as_whole_pages_go() -> None:
    smaps = mapping(4096, 3 * LARGE_PAGE + 4096, "rw-p 0 [heap]", rss=6000)
    smaps += mapping(4 * LARGE_PAGE, 5 * LARGE_PAGE, "rw-p 0", rss=1500)
    assert worth_it(smaps) == [
        (_BASE + LARGE_PAGE, _BASE + 3 * LARGE_PAGE),
        (_BASE + 4 * LARGE_PAGE, _BASE + 5 * LARGE_PAGE),
    ]


@pytest.mark.parametrize(
    ("what", "rss", "large"),
    [
        ("rw-p 0", 900, 0),  # most of it is empty, as stacks are
        ("rw-p 0", 2048, 2048),  # large already
        ("rw-p 77 /some/file", 2048, 0),
        ("rw-p 0 [stack]", 2048, 0),
        ("r-xp 0", 2048, 0),
        ("rw-s 0", 2048, 0),
    ],
)
def test_what_is_empty_large_or_anothers_is_left(what: str, rss: int, large: int) -> None:
    assert worth_it(mapping(0, LARGE_PAGE, what, rss=rss, large=large)) == []


def test_less_than_a_page_is_left() -> None:
    assert worth_it(mapping(4096, LARGE_PAGE, "rw-p 0", rss=2000)) == []


_PROGRAM = """
import sys
from pathlib import Path
from quire_engine.large_heap import put_together
def large():
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("AnonHugePages"))
kept = [str(i) * 3 for i in range(400_000)]
before = large()
put_together()
print(before, large(), len(kept), kept[77], kept[-1])
"""


def test_objects_stay_what_they_are_and_their_pages_become_large() -> None:
    if not _ENABLED.exists() or "[never]" in _ENABLED.read_text():
        pytest.skip("this kernel has no large pages, or its administrator wants none")
    result = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True)
    before, after, *kept = result.stdout.split()
    assert kept == ["400000", "77" * 3, "399999" * 3]
    version = tuple(int(n) for n in Path("/proc/sys/kernel/osrelease").read_text().split("-")[0].split(".")[:2])
    if version >= (6, 1):
        assert int(after) - int(before) > 10 * 1024
