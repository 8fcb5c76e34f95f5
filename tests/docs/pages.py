"""The pages that users read, and what is in them: code blocks and tables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = (REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md")))
INSTALLING_PAGE = REPOSITORY / "docs" / "installing.md"
LLMSERVICE_PAGE = REPOSITORY / "docs" / "llmservice.md"

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    """The blocks of all pages that are in one of these languages."""
    return [block for page in PAGES for block in _blocks(page) if block.language in languages]


def _blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for found in _BLOCK.finditer(text):
        yield Block(page.name, text.count("\n", 0, found.start()) + 1, found[1], found[2])


def section(page: Path, heading: str) -> str:
    """The prose below a heading, its subsections included and blocks of code left out."""
    level = len(heading) - len(heading.lstrip("#"))
    text = _BLOCK.sub("", page.read_text())
    _, found, rest = text.partition(f"\n{heading}\n")
    assert found, f"{page.name} has no heading {heading!r}"
    return re.split(rf"^#{{1,{level}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def first_cells(text: str) -> list[str]:
    """What stands in backticks at the beginning of each row of the tables in `text`."""
    return re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)


def rows(text: str) -> dict[str, str]:
    """First cell, without its backticks, and second cell of each row that begins with backticks."""
    return dict(re.findall(r"^\| `([^`]+)` \| ([^|]*?) ?\|", text, re.MULTILINE))
