"""Write the flag tables of engine.md from the settings: `python docs/write_flags.py` (`make crds`)."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from quire_engine.config import EngineConfig
from quire_engine.flags import flag_name
from quire_engine.server.settings import ServerSettings

PAGE = Path(__file__).parent / "engine.md"


def table(settings: type) -> str:
    """A Markdown table with a row for each flag."""
    rows = ["| flag | default | what it does |", "|---|---|---|"]
    for field in dataclasses.fields(settings):
        unset = field.default in (None, "", ())
        default = " ".join(field.default) if isinstance(field.default, tuple) else field.default
        shown = "" if unset else f"`{str(default).lower() if isinstance(default, bool) else default}`"
        text = field.metadata["help"] + ("; **not supported yet**" if "only" in field.metadata else "")
        if field.metadata["choices"]:
            text += f" ({', '.join(field.metadata['choices'])})"
        rows.append(f"| `{flag_name(field.name)}` | {shown} | {text} |")
    return "\n".join(rows)


def with_tables(page: str) -> str:
    """The page with its tables, between `<!-- flags: NAME -->` and `<!-- end -->`, written anew."""
    tables = {"engine": table(EngineConfig), "server": table(ServerSettings)}
    pattern = re.compile(r"(<!-- flags: (\w+) -->\n).*?(\n<!-- end -->)", re.DOTALL)
    return pattern.sub(lambda found: found[1] + tables[found[2]] + found[3], page)


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
