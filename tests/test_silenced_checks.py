"""A check that is silenced says why, beside it or in the comment directly above, which several lines may have."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SILENCED = re.compile(
    r"#\s*(type: ignore(\[[^]]*\])?|noqa(:\s*[A-Z]+\d+(,\s*[A-Z]+\d+)*)?|pragma: no cover)(?P<rest>.*)"
)
FOLDERS = ("engine", "operator", "e2e", "tests", "benchmarks", "docs")


def without_reason(text: str) -> list[int]:
    """Numbers of lines, from 1."""
    lines = text.splitlines()
    found = []
    for number, line in enumerate(lines):
        silenced = SILENCED.search(line)
        above = next((other for other in reversed(lines[:number]) if not SILENCED.search(other)), "")
        if silenced and not silenced["rest"].strip() and not above.lstrip().startswith("# "):
            found.append(number + 1)
    return found


def test_each_silenced_check_has_its_reason() -> None:
    files = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")]
    assert len(files) > 400
    silent = [f"{file.relative_to(ROOT)}:{number}" for file in files for number in without_reason(file.read_text())]
    assert not silent, "say why beside the comment that silences it, or above"


def test_a_reason_beside_it_or_above_is_seen_and_none_is_missed() -> None:
    ignore, noqa = "# type: " + "ignore[misc]", "# no" + "qa: E731"
    assert without_reason(f"a = 1  {ignore}\nb = 2  {noqa}") == [1, 2]
    assert without_reason(f"a = 1  {ignore}  # mixed values\nb = 2  {noqa}  a fresh one each time") == []
    assert without_reason(f"# it has no types\na = 1  {ignore}\nb = 2  {ignore}") == []
    assert without_reason(f"# of something else\na = 1\nb = 2  {ignore}") == [3]
