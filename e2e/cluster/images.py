"""The two images that the node's others stand on, and its registry filled. Nothing but Debian's mirror is needed."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from pathlib import Path

from e2e.cluster import locations, packages, registry
from e2e.cluster.builders import Buildah
from e2e.cluster.errors import ClusterError
from e2e.cluster.progress import stage

BASE = "docker.io/library/debian:bookworm-slim"
PAUSE = "quire/pause:1"
_PAUSE_SOURCE = Path(__file__).parent / "pause.c"
_APT_SOURCES = Path("etc/apt/sources.list.d/debian.sources")
_NOT_IN_SLIM = ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale", "var/log")


def base() -> None:
    """Make the pause program of every pod, and a stand-in for Debian's bookworm-slim by debootstrap, under its name."""
    packages.ensure()
    buildah = Buildah()
    with (locations.cache() / "image-base.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not buildah.is_stored(PAUSE):
            with stage(f"Building {PAUSE}"):
                _pause_image()
        if not buildah.is_stored(BASE):
            with stage(f"Building {BASE} by debootstrap"):
                _debian_image()


def push(reference: str) -> None:
    """Push an image to the node's registry, which is started where it does not run."""
    registry.start()
    Buildah().push(reference, f"{registry.ADDRESS}/{registry_name(reference)}")


def push_if_absent(reference: str) -> None:
    """Push an image whose tag is never given to another content."""
    registry.start()
    if not registry.holds(registry_name(reference)):
        push(reference)


def from_folder(reference: str, root: Path, *settings: str) -> None:
    """An image of one layer: what lies in `root`."""
    buildah = Buildah()
    container = buildah.run("from", "scratch", log=reference).strip()
    buildah.run("add", "--quiet", container, str(root), "/", log=reference)
    buildah.run("config", *settings, container, log=reference)
    buildah.run("commit", "--quiet", "--rm", container, reference, log=reference)


def registry_name(reference: str) -> str:
    """The path under which containerd's mirror looks for an image of Docker Hub's or of no registry at all."""
    return reference.removeprefix("docker.io/")


def _pause_image() -> None:
    root = locations.cache() / "pause"
    root.mkdir(parents=True, exist_ok=True)
    subprocess.run(["gcc", "-Os", "-static", "-o", root / "pause", _PAUSE_SOURCE], check=True)
    from_folder(PAUSE, root, "--entrypoint", '["/pause"]')


def _debian_image() -> None:
    root = locations.cache() / "bookworm"
    shutil.rmtree(root, ignore_errors=True)
    log = locations.cache() / "log" / "debootstrap.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = ["debootstrap", "--variant=minbase", "--include=ca-certificates", "bookworm", str(root)]
    with log.open("w") as output:
        if subprocess.run(command, stdout=output, stderr=output, check=False).returncode:
            raise ClusterError(f"debootstrap failed, see {log}")
    if (Path("/") / _APT_SOURCES).exists():  # the mirrors that this machine can reach
        shutil.copy(Path("/") / _APT_SOURCES, root / _APT_SOURCES)
        (root / "etc/apt/sources.list").write_text("")
    for folder in _NOT_IN_SLIM:
        for entry in (root / folder).iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    from_folder(BASE, root, "--cmd", "bash", "--env", path)
    shutil.rmtree(root)
