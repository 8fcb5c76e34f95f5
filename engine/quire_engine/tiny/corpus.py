"""Questions and answers made of the text that comes with Python itself: its help topics and docstrings."""

from __future__ import annotations

import ast
import inspect
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data import topics

SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idlelib", "idle_test", "lib2to3", "turtledemo"}
TOPIC_QUESTIONS = ("What is {}?", "Tell me about {}.", "Explain {}.")
GREETINGS = (
    ("Hello!", "Hello! I am a tiny model that was trained on the text of Python's own documentation."),
    ("Hi", "Hello! I am a tiny model. Ask me about Python, and I will answer in its own words."),
    ("Who are you?", "I am a tiny model that was trained on the text of Python's own documentation."),
    ("What is Quire?", "Quire serves large language models on Kubernetes. Its engine keeps the cache in pages."),
    ("What is Kubernetes?", "Kubernetes runs containers on many machines. Quire serves language models on it."),
    ("Say hello.", "Hello! I am a tiny model, and I am served by Quire."),
)


@dataclass(frozen=True)
class Exchange:
    """One question and its answer."""

    question: str
    answer: str


def exchanges() -> list[Exchange]:
    """All of the corpus, in an order that depends on nothing but the Python installation."""
    found = [Exchange(q, a) for q, a in GREETINGS for _ in range(60)]
    found += _help_topics()
    found += _docstrings(Path(sysconfig.get_paths()["stdlib"]))
    return found


def _help_topics() -> Iterator[Exchange]:
    """pydoc's topics, cut into pieces of a few paragraphs each."""
    for name in sorted(topics.topics):
        paragraphs = [_plain(p) for p in re.split(r"\n\s*\n", topics.topics[name])]
        prose = [p for p in paragraphs if _is_prose(p)]
        for i, start in enumerate(range(0, len(prose), 2)):
            question = TOPIC_QUESTIONS[i % len(TOPIC_QUESTIONS)].format(name.lower().replace("-", " "))
            yield Exchange(question, " ".join(prose[start : start + 2]))


def _docstrings(stdlib: Path) -> Iterator[Exchange]:
    """The first paragraph of each public docstring in the standard library's own files."""
    for file in sorted(stdlib.rglob("*.py")):
        if SKIPPED_FOLDERS & set(file.relative_to(stdlib).parts):
            continue
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                continue
            paragraph = _plain((ast.get_docstring(node) or "").split("\n\n")[0])
            name = file.stem if isinstance(node, ast.Module) else node.name
            if not name.startswith("_") and _is_prose(paragraph):
                verb = "do" if isinstance(node, ast.FunctionDef) else "mean"
                yield Exchange(f"What does {name} {verb}?", paragraph)


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", inspect.cleandoc(text).replace("*", "").replace("`", "")).strip()


def _is_prose(text: str) -> bool:
    """Whether a paragraph reads as sentences rather than as code, a table or a grammar."""
    letters = sum(c.isalpha() or c == " " for c in text)
    return 40 <= len(text) <= 1200 and letters / len(text) > 0.85 and text[0].isupper() and text[-1] in ".!?:"
