"""What to call a failure: `Reason: one line`."""

from __future__ import annotations

from quire_engine.startup_error import StartupError


def failure_of(error: Exception) -> str:
    """What made a process fail, for whoever reads its last line."""
    if isinstance(error, StartupError):
        return str(error)
    text = " ".join(str(error).split())
    return f"{_reason(error)}: {type(error).__name__}: {text}"


def _reason(error: Exception) -> str:
    """`OutOfMemory` where memory ran out, on the host or the device, else `EngineFailed`."""
    out = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "alloc" in str(error).lower()
    return "OutOfMemory" if out else "EngineFailed"
