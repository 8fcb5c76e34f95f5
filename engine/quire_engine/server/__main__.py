"""`python3 -m quire_engine.server` is `quire-engine serve`, so that a Deployment written for vLLM's image runs."""

import sys

from quire_engine.cli import main

sys.exit(main(["serve", *sys.argv[1:]]))
