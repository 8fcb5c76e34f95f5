"""Write figures into bench.md, and draw them, from benchmarks/results: `python docs/write_speed.py` (`make crds`)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks" / "results"
PAGE, DRAWING = DOCS / "bench.md", DOCS / "speed.svg"
# What a row shows: the load, the figure, how it is called, and whether more of it is better.
ROWS = (
    ("one stream", "median_tpot_ms", "one stream: ms a token", False),
    ("one stream", "median_ttft_ms", "one stream: ms to the first", False),
    ("16 streams", "output_throughput", "16 streams: tokens/s", True),
    ("16 streams", "median_ttft_ms", "16 streams: ms to the first", False),
    ("shared prefix", "output_throughput", "shared prefix: tokens/s", True),
    ("shared prefix", "median_ttft_ms", "shared prefix: ms to the first", False),
)
DRAWN = (("one stream", "One stream"), ("16 streams", "16 streams"), ("shared prefix", "Shared prefix, 8 streams"))


def table(figures: dict[str, Any], names: list[str]) -> str:
    """A Markdown table: each figure's median, its least and greatest, and for others how far Quire is ahead."""
    lines = [f"| | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for load, figure, title, more in ROWS:
        found = {name: figures[load][name][figure] for name in names if name in figures.get(load, {})}
        if found:
            lines.append(f"| {title} | {' | '.join(_cell(found, name, more=more) for name in names)} |")
    for key, title in (("first_token_after_s", "start to the first token, s"), ("memory_mib", "memory, MiB")):
        lines.append(f"| {title} | {' | '.join(f'{figures[key][name]:g}' for name in names)} |")
    return "\n".join(lines)


def _cell(found: dict[str, Any], name: str, *, more: bool) -> str:
    if name not in found:
        return ""
    own, value = found["quire"]["median"], found[name]["median"]
    spread = f"{value:.3g} ({found[name]['least']:.3g} to {found[name]['greatest']:.3g})" if value < 1000 else ""
    text = spread or f"{value:.0f} ({found[name]['least']:.0f} to {found[name]['greatest']:.0f})"
    return text if name == "quire" else f"{text}, **{value / own if not more else own / value:.2f}x**"


def drawing(figures: dict[str, Any]) -> str:
    """Bars of tokens a second, as SVG."""
    width, left, bar, gap = 720, 150, 18, 30
    parts, y = [], 10
    for load, title in DRAWN:
        found = {name: one["output_throughput"]["median"] for name, one in figures.get(load, {}).items()}
        if not found:
            continue
        parts.append(f'<text x="10" y="{y + 12}" font-weight="bold">{title}: tokens a second</text>')
        y += 22
        for name, value in found.items():
            length = round((width - left - 70) * value / max(found.values()))
            colour = "#3f51b5" if name.startswith("quire") else "#b0b4c4"
            parts.append(f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{name}</text>')
            parts.append(f'<rect x="{left}" y="{y}" width="{length}" height="{bar - 4}" fill="{colour}"/>')
            parts.append(f'<text x="{left + length + 6}" y="{y + 13}">{value:.1f}</text>')
            y += bar
        y += gap - bar
    y += bar - gap
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" font-family="sans-serif" font-size="13">'
    background = f'<rect width="{width}" height="{y}" fill="white"/>'
    return "\n".join([head, background, *parts, "</svg>\n"])


def with_tables(page: str) -> str:
    """The page with what stands between `<!-- figures: FILE ENGINES -->` and `<!-- end -->` written anew.

    `ENGINES`, with commas between, leaves others out.
    """
    pattern = re.compile(r"(<!-- figures: (\w+) ([^>]+) -->\n).*?(<!-- end -->)", re.DOTALL)
    return pattern.sub(lambda found: f"{found[1]}{table(_figures(found[2]), found[3].split(','))}\n{found[4]}", page)


def _figures(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())["figures"]
    return found


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
    DRAWING.write_text(drawing(_figures("cpu_short")))
