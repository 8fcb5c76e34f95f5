"""What goes wrong when a cluster is built or brought up."""

from __future__ import annotations


class ClusterError(Exception):
    """The message says what was wrong, where, and what to do about it; it is printed without a traceback."""
