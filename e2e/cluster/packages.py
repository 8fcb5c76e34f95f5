"""The Debian packages that a node is made of. Their services are never started: `up` runs the programs itself."""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from e2e.cluster import locations
from e2e.cluster.errors import ClusterError
from e2e.cluster.progress import stage

# package -> a file that only it brings, as a pattern
PACKAGES = {
    "containerd": "/usr/bin/containerd",
    "runc": "/usr/sbin/runc",
    "containernetworking-plugins": "/usr/lib/cni/bridge",
    "iptables": "/usr/sbin/iptables",
    "nftables": "/usr/sbin/nft",
    "ipset": "/usr/sbin/ipset",
    "conntrack": "/usr/sbin/conntrack",
    "iproute2": "/usr/bin/ip",
    "socat": "/usr/bin/socat",
    "buildah": "/usr/bin/buildah",
    "debootstrap": "/usr/sbin/debootstrap",
    "docker-registry": "/usr/bin/docker-registry",
    "gcc": "/usr/bin/gcc",  # the static pause program
    "libc6-dev": "/usr/include/stdio.h",
    "openssl": "/usr/bin/openssl",
}
FAKE_CLOCK = {"libfaketime": "/usr/lib/*/faketime/libfaketime.so.1"}
"""Not of a node: a test gives a process a clock that jumps."""

_POLICY = Path("/usr/sbin/policy-rc.d")


def require_bare_linux() -> None:
    """Raise ClusterError where a node cannot be brought up: not Linux, not root."""
    if sys.platform != "linux":
        raise ClusterError(
            f"a node needs Linux and this is {sys.platform}: set KUBECONFIG to a cluster, or install kind"
        )
    if os.geteuid() != 0:
        raise ClusterError(
            "a node needs root: run this with sudo, set KUBECONFIG to a cluster, or install Docker and kind"
        )


def ensure(packages: Mapping[str, str] = PACKAGES) -> None:
    """Install what is missing. Raises ClusterError where that cannot be done."""
    require_bare_linux()
    if not _missing(packages):
        return
    with _lock():
        missing = _missing(packages)
        if not missing:
            return
        if not shutil.which("apt-get"):
            raise ClusterError(f"these programs are missing and there is no apt-get: {', '.join(missing)}")
        with stage(f"Installing Debian packages: {', '.join(missing)}"), _no_services():
            _apt_get("update", "-q")
            _apt_get("install", "-y", "-q", "--no-install-recommends", *missing)


def _missing(packages: Mapping[str, str]) -> list[str]:
    return [package for package, file in packages.items() if not glob.glob(file)]


def _apt_get(*arguments: str) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "-o", "DPkg::Lock::Timeout=300", *arguments]
    result = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if result.returncode:
        raise ClusterError(f"{' '.join(command)} failed and ends with:\n{result.stdout[-1500:]}")


@contextmanager
def _no_services() -> Iterator[None]:
    """Debian asks this script before it starts a service; without one it would start containerd and the registry."""
    if _POLICY.exists():
        yield
        return
    _POLICY.write_text("#!/bin/sh\nexit 101\n")
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        _POLICY.unlink()


@contextmanager
def _lock() -> Iterator[None]:
    locations.cache().mkdir(parents=True, exist_ok=True)
    with (locations.cache() / "packages.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
