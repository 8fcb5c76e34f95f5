"""The address that everything of the node listens on: its own, so that nothing else is in the way."""

from __future__ import annotations

import subprocess

ADDRESS = "10.254.0.1"
BRIDGE = "quire0"


def add_address() -> None:
    """Put the address on the loopback interface. It may be there already."""
    subprocess.run(["ip", "address", "replace", f"{ADDRESS}/32", "dev", "lo"], check=True)


def remove_address() -> None:
    """Take the address off again. It may be gone already."""
    subprocess.run(["ip", "address", "del", f"{ADDRESS}/32", "dev", "lo"], stderr=subprocess.DEVNULL, check=False)


def remove_bridge() -> None:
    """Remove the pods' bridge, which the CNI plugin made."""
    subprocess.run(["ip", "link", "del", BRIDGE], stderr=subprocess.DEVNULL, check=False)
