"""Log lines for people, or JSON lines for machines."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, message and, if any, the error's trace."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure_logging(level: str = "info", log_format: str = "text") -> None:
    """Send everything to standard error. `level` is a name such as "info"; `log_format` is "text" or "json"."""
    level = "debug" if level == "trace" else level  # uvicorn's finest is not Python's
    handler = logging.StreamHandler(sys.stderr)
    if log_format == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in ("httpx", "httpcore", "asyncio", "filelock", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def parts_of(seconds: Mapping[str, float]) -> str:
    """What took how long, in words."""
    return ", ".join(f"{name} {taken:.1f} s" for name, taken in seconds.items())


def current_level() -> str:
    """The `level` that was configured, or the next higher name of a level that somebody else set."""
    level = logging.getLogger().level
    names = ("debug", "info", "warning", "error")
    return next((name for name in names if level <= logging.getLevelNamesMapping()[name.upper()]), "critical")


def current_format() -> str:
    """The `log_format` that was configured."""
    handlers = logging.getLogger().handlers
    return "json" if any(isinstance(handler.formatter, JsonFormatter) for handler in handlers) else "text"
