"""Write the table of models.md from the models that tests compare: `python docs/write_models.py` (`make crds`)."""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.engine.models.families import FAMILIES

PAGE = Path(__file__).parent / "models.md"


def table() -> str:
    """A Markdown table with a row for each class of models."""
    rows = ["| models | `architectures` | compared with transformers |", "|---|---|---|"]
    rows += [f"| {family.models} | `{family.architecture}` | {'; '.join(family.cases)} |" for family in FAMILIES]
    return "\n".join(rows)


def with_table(page: str) -> str:
    """The page with the table between `<!-- models -->` and `<!-- end -->` written anew."""
    pattern = re.compile(r"(<!-- models -->\n).*?(\n<!-- end -->)", re.DOTALL)
    return pattern.sub(lambda found: found[1] + table() + found[2], page)


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
