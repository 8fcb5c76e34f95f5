"""The command line: `python3 -m e2e.cluster`."""

from __future__ import annotations

import argparse
import sys

from e2e.cluster import binaries
from e2e.cluster.errors import ClusterError
from e2e.cluster.recipes import RECIPES


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python3 -m e2e.cluster", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    build = commands.add_parser("build", help="build programs from Go modules into the cache")
    build.add_argument("names", nargs="*", metavar="NAME", help=f"default: what a node needs; of {', '.join(RECIPES)}")
    build.set_defaults(run=lambda args: print(binaries.ensure(*(args.names or binaries.NODE))))
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
