"""What a process holds is in large pages."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from quire_engine import large_heap
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


def run(program: str) -> list[str]:
    """The words that it prints. `large()` and `resident()` are the process's KiB."""
    if not _ENABLED.exists() or "[never]" in _ENABLED.read_text():
        # Nothing is put together there, by design: worth_it, which decides what would be, is tested above all the same.
        pytest.skip("this kernel has no large pages, or its administrator wants none")
    done = subprocess.run([sys.executable, "-c", _TOOLS + program], capture_output=True, text=True, check=True)
    return done.stdout.split()


_TOOLS = """
import gc, resource
from pathlib import Path
from quire_engine.large_heap import lay_arenas_together, put_together
def sizes(name):
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith(name))
large, resident = lambda: sizes("AnonHugePages:"), lambda: sizes("Rss:")
"""


def test_objects_stay_what_they_are_and_their_pages_become_large() -> None:
    before, after, *kept = run("""
kept = [str(i) * 3 for i in range(1_000_000)]  # 70 MiB and more
before = large()
put_together()
print(before, large(), len(kept), kept[77], kept[-1])
""")
    assert kept == ["1000000", "77" * 3, "999999" * 3]
    version = tuple(int(n) for n in Path("/proc/sys/kernel/osrelease").read_text().split("-")[0].split(".")[:2])
    if version >= (6, 1):
        assert int(after) - int(before) > 8 * 1024  # how much depends on what arenas lie between


def test_arenas_lie_together_and_are_given_back() -> None:
    before, taken, gone, *kept = run("""
first = [str(i) for i in range(20_000)]  # in arenas of before, which go back as well
lay_arenas_together()
lay_arenas_together()
before, kept = large(), [str(i) * 3 for i in range(1_000_000)]
taken, all_of_it = large(), resident()
some = kept[::100_000], first[-1]
del kept, first
gc.collect()
print(before, taken, all_of_it - resident(), *some[0], some[1])
""")
    assert kept == [*(str(i) * 3 for i in range(0, 1_000_000, 100_000)), "19999"]
    built = [*Path(large_heap.__file__).parent.glob("_arenas.*.so")]
    if not built and shutil.which("gcc") is None:
        # The library is optional, and only a compiler makes it: with one, `make install` has, and this has to hold.
        pytest.skip("there is no gcc: arenas stay where Python has them")
    assert built, "there is a compiler and no library: run make install"
    assert int(taken) - int(before) > 50 * 1024
    assert int(gone) > 50 * 1024


def test_a_process_that_may_not_reserve_so_much_goes_on() -> None:
    assert run("""
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
lay_arenas_together()
kept = [str(i) * 3 for i in range(400_000)]
print(len(kept), kept[-1])
""") == ["400000", "399999" * 3]
