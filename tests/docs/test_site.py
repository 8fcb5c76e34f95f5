"""The documentation site: built strictly, so that no link or anchor leads nowhere, and free of other hosts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, REPOSITORY

_LOADED = re.compile(r"<(?:script|img|iframe)\b[^>]*\bsrc=\"?([^\"\s>]+)|<link\b[^>]*\bhref=\"?([^\"\s>]+)")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `make docs` fills."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def test_every_page_is_on_the_site(site: Path) -> None:
    decisions = (REPOSITORY / "docs" / "decisions").glob("*.md")
    expected = {"README": "index", "CONTRIBUTING": "contributing"}
    names = [expected.get(page.stem, page.stem) for page in PAGES] + [f"decisions/{page.stem}" for page in decisions]
    assert [name for name in names if not (site / f"{name}.html").is_file()] == []


def test_a_page_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = {page: _LOADED.findall(page.read_text()) for page in site.rglob("*.html")}
    assert all(pages.values())
    loaded = {script or link for found in pages.values() for script, link in found}
    assert [url for url in loaded if "//" in url] == []


def test_lists_and_tables_are_shown_as_such(site: Path) -> None:
    text = "\n".join(page.read_text() for page in site.rglob("*.html"))
    assert re.findall(r"(?:<p>|<p>[^<]*\n)(?:[-|] |\d+\. )[^\n]*", text) == []


def test_a_link_to_a_page_outside_the_folder_leads_to_it(site: Path) -> None:
    assert 'href="llmservice.html"' in (site / "index.html").read_text()
    assert 'href="cluster.html"' in (site / "contributing.html").read_text()


def test_the_search_knows_every_page(site: Path) -> None:
    index = (site / "search" / "search_index.json").read_text()
    assert all(f'"location":"{page.relative_to(site)}"' in index for page in site.rglob("*.html") if page.stem != "404")
