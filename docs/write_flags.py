"""Write the flag tables of engine.md from the settings: `python docs/write_flags.py` (`make docs`)."""

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
        shown = "" if unset else f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"
        text = field.metadata["help"] + ("; **not supported yet**" if "only" in field.metadata else "")
        if field.metadata["choices"]:
            text += f" ({', '.join(field.metadata['choices'])})"
        rows.append(f"| `{flag_name(field.name)}` | {shown} | {text} |")
    return "\n".join(rows)


def with_tables(page: str) -> str:
    """The page with its tables, between `<!-- flags: NAME -->` and `<!-- end -->`, written anew."""
    for name, settings in (("engine", EngineConfig), ("server", ServerSettings)):
        pattern = re.compile(rf"(<!-- flags: {name} -->\n).*?(\n<!-- end -->)", re.DOTALL)
        page, count = pattern.subn(lambda m, t=table(settings): m[1] + t + m[2], page)  # type: ignore[misc]
        assert count == 1, f"{PAGE.name} needs one place marked for the {name} flags"
    return page


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
