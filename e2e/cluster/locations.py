"""Where things lie: what is kept between clusters, and the state of the one that runs."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def cache() -> Path:
    """Binaries, image layers and registry contents: slow to make, kept by `down`. QUIRE_CACHE moves it."""
    return Path(os.environ.get("QUIRE_CACHE") or Path.home() / ".cache" / "quire").absolute()


def binaries() -> Path:
    """The folder that `binaries.ensure` fills."""
    return cache() / "bin"


def state() -> Path:
    """Everything the running node writes; `down` removes it. QUIRE_CLUSTER_DIR moves it."""
    return Path(os.environ.get("QUIRE_CLUSTER_DIR") or "/tmp/quire-cluster").absolute()
