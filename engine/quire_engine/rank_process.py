"""A rank's process: one part of the model, which runs the steps that rank 0 sends."""

from __future__ import annotations

import logging
import os
import signal
import sys

import msgspec

from quire_engine.distributed.follower import Follower, comes_of_another
from quire_engine.distributed.launch import die_with_parent
from quire_engine.distributed.messages import RankOptions
from quire_engine.engine import build_rank
from quire_engine.logs import configure_logging
from quire_engine.startup_error import StartupError

log = logging.getLogger(__name__)


def main() -> int:
    options = msgspec.json.decode(sys.stdin.buffer.read(), type=RankOptions)
    # What there is to say of a start, rank 0 says for all.
    configure_logging("warning" if options.log_level == "info" else options.log_level, options.log_format)
    die_with_parent(options.parent_pid)
    # Rank 0 decides when ranks end; a SIGTERM to all processes of a pod must not cut streams.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    return run(options)


def run(options: RankOptions) -> int:
    """Be a rank until rank 0 releases it. Returns the exit status."""
    follower = Follower(options.config, options.rank, options.host, options.port, _end)
    try:
        built = build_rank(options.config, follower)
        return 0 if follower.run(built.runner) is None else 1
    except Exception as error:
        if not isinstance(error, StartupError) and not comes_of_another(error):
            log.exception("rank %d failed", options.rank)
        follower.fail(error)
        return 1
    finally:
        follower.close()


def _end(cause: str) -> None:
    """There is nobody left to serve, and the main thread may be waiting for the lost rank for ever."""
    log.error("%s", cause)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
