"""What the site needs beyond MkDocs (a hook of mkdocs.yml): pages from outside docs/, and links that work there too.

Pages are written for a Git host first. There README.md links to docs/engine.md, and docs/engine.md to ../README.md.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

OUTSIDE = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md"}
"""Pages at the repository's root, and what they are called in the site."""

_LINK = re.compile(r"(?<=\]\()([\w./-]+\.md)(?=[#)])")
_OPENS_A_BLOCK = re.compile(r"[-*] |\d+\. |\|")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put every page of a folder where the navigation names the folder."""
    config.nav = [_expanded(entry, Path(config.docs_dir)) for entry in config.nav or []]
    return config


def _expanded(entry: Any, folder: Path) -> Any:
    match entry:
        case dict():
            ((title, below),) = entry.items()
            if isinstance(below, str) and below.endswith("/"):
                return {title: [f"{below}{page.name}" for page in sorted((folder / below).glob("*.md"))]}
    return entry


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside docs/."""
    root = Path(config.config_file_path).parent
    for name, page in OUTSIDE.items():
        files.append(File.generated(config, page, abs_src_path=str(root / name)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Write links and blocks as MkDocs wants them."""
    linked = _LINK.sub(lambda link: site_link(link[1], page.file.src_uri), markdown)
    return with_blank_lines(linked)


def site_link(link: str, page: str) -> str:
    """A link between files of the repository, as one between pages of the site."""
    here = next((name for name, uri in OUTSIDE.items() if uri == page), f"docs/{page}")
    target = posixpath.normpath(posixpath.join(posixpath.dirname(here), link))
    uri = OUTSIDE.get(target) or (target.removeprefix("docs/") if target.startswith("docs/") else None)
    return link if uri is None else posixpath.relpath(uri, posixpath.dirname(page) or ".")


def with_blank_lines(markdown: str) -> str:
    """Blank lines around code and before lists and tables, which Git hosts do without and Python-Markdown does not."""
    lines: list[str] = []
    in_code = in_block = False
    for line in markdown.splitlines():
        is_fence = line.startswith("```")
        opens = not in_code and _OPENS_A_BLOCK.match(line) is not None
        if lines and lines[-1] and ((is_fence and not in_code) or (opens and not in_block)):
            lines.append("")
        in_block = opens or (in_block and line.startswith(" "))
        lines.append(line)
        if is_fence and in_code:
            lines.append("")
        in_code ^= is_fence
    return "\n".join(lines)
