"""Write the table of models.md from the models that tests compare: `python docs/write_models.py` (`make crds`)."""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.engine.models.families import ENCODERS, FAMILIES, Family

PAGE = Path(__file__).parent / "models.md"


def table(families: list[Family]) -> str:
    """A Markdown table with a row for each class of models."""
    rows = ["| models | `architectures` | compared with transformers |", "|---|---|---|"]
    rows += [f"| {family.models} | `{family.architecture}` | {'; '.join(family.cases)} |" for family in families]
    return "\n".join(rows)


def with_table(page: str) -> str:
    """The page with the tables behind `<!-- models -->` and `<!-- encoders -->`, up to `<!-- end -->`, written anew."""
    named = [family for family in ENCODERS if family.models]
    for mark, families in (("models", FAMILIES), ("encoders", named)):
        pattern = re.compile(rf"(<!-- {mark} -->\n).*?(\n<!-- end -->)", re.DOTALL)
        rows = table(families)
        page = pattern.sub(lambda found, rows=rows: found[1] + rows + found[2], page)
    return page


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
