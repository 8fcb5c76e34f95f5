"""JSON log lines on standard error, each with the LLMService that it is about."""

from __future__ import annotations

import contextvars
import datetime
import json
import logging
import sys

about: contextvars.ContextVar[tuple[str, str] | None] = contextvars.ContextVar("about", default=None)
"""Namespace and name of the LLMService that is being reconciled."""


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        key = about.get()
        if key is not None:
            line["namespace"], line["llmservice"] = key
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def set_up_logging(level: str) -> None:
    """Send everything from `level` on to standard error, and from libraries only warnings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("quire_operator").setLevel(level.upper())
