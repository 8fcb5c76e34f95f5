"""The engine's process, as `python -m quire_engine.engine_main`: memory is laid out before torch fills it."""

from __future__ import annotations

import sys

from quire_engine.large_heap import lay_arenas_together


def main() -> int:
    """As `engine_process.main`."""
    lay_arenas_together()
    from quire_engine.engine_process import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
