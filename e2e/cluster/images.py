"""Build images with buildah, which needs no daemon, and push them to the node's registry."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from e2e.cluster import locations, packages, registry
from e2e.cluster.errors import ClusterError
from e2e.cluster.progress import stage

BASE = "docker.io/library/debian:bookworm-slim"
PAUSE = "quire/pause:1"
RUN_ROOT = Path("/run/quire-buildah")
_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
_PAUSE_SOURCE = Path(__file__).parent / "pause.c"
_APT_SOURCES = Path("etc/apt/sources.list.d/debian.sources")
_NOT_IN_SLIM = ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale", "var/log")


def base() -> None:
    """Make the two images that the others stand on, without any registry but Debian's mirror.

    The pause program of every pod, and a stand-in for Debian's bookworm-slim made by debootstrap, under its own name.
    """
    packages.ensure()
    with _lock("base"):
        if not _is_stored(PAUSE):
            with stage(f"Building {PAUSE}"):
                _pause_image()
        if not _is_stored(BASE):
            with stage(f"Building {BASE} by debootstrap"):
                _debian_image()


def build(
    reference: str,
    dockerfile: Path,
    context: Path,
    *,
    target: str = "",
    arguments: Mapping[str, str] | None = None,
) -> None:
    """Build `dockerfile`, or its stage `target`, as `reference`. Raises ClusterError with the end of the log."""
    pip = locations.cache() / "pip.conf"
    pip.write_text(_pip_config())
    command = ["build", "--layers", "--network=host", f"--file={dockerfile}", f"--tag={reference}"]
    # pip inside the build trusts what this machine trusts; the files are mounted, so nothing of them stays
    command += [f"--volume={pip}:/etc/pip.conf:ro", f"--volume={_AUTHORITIES}:/run/authorities.crt:ro"]
    command += [f"--target={target}"] if target else []
    command += [f"--build-arg={key}={value}" for key, value in (arguments or {}).items()]
    with _lock(dockerfile.name), stage(f"Building {reference}"):
        _buildah(*command, str(context), log=reference)


def push(reference: str) -> None:
    """Push an image to the node's registry. Layers that are there already cost nothing."""
    registry.start()
    name = registry_name(reference)
    with stage(f"Pushing {name} to the node's registry"):
        _buildah("push", "--tls-verify=false", reference, f"docker://{registry.ADDRESS}/{name}", log=name)


def push_if_absent(reference: str) -> None:
    """Push an image whose tag is never given to another content."""
    registry.start()
    if not registry.holds(registry_name(reference)):
        push(reference)


def registry_name(reference: str) -> str:
    """The path under which containerd's mirror looks for an image of Docker Hub's or of no registry at all."""
    return reference.removeprefix("docker.io/")


def size(reference: str) -> str:
    """The image's size, unpacked, such as `5.41 GB`."""
    return str(json.loads(_buildah("images", "--json", reference, log="size"))[0]["size"])


def store_lock() -> Path:
    """Held, shared, while buildah runs."""
    return locations.cache() / "buildah.lock"


def _pause_image() -> None:
    root = locations.cache() / "pause"
    root.mkdir(parents=True, exist_ok=True)
    subprocess.run(["gcc", "-Os", "-static", "-o", root / "pause", _PAUSE_SOURCE], check=True)
    _from_folder(PAUSE, root, "--entrypoint", '["/pause"]')


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
    _from_folder(BASE, root, "--cmd", "bash", "--env", path)
    shutil.rmtree(root)


def _from_folder(reference: str, root: Path, *settings: str) -> None:
    """An image of one layer: what lies in `root`."""
    container = _buildah("from", "scratch", log=reference).strip()
    _buildah("add", "--quiet", container, str(root), "/", log=reference)
    _buildah("config", *settings, container, log=reference)
    _buildah("commit", "--quiet", "--rm", container, reference, log=reference)


def _is_stored(reference: str) -> bool:
    command = ["buildah", *_storage(), "inspect", "--type=image", reference]
    return subprocess.run(command, env=_environment(), capture_output=True, check=False).returncode == 0


def _buildah(*arguments: str, log: str) -> str:
    """Run buildah and return its standard output, which is also written to a log. Raises ClusterError."""
    file = locations.cache() / "log" / f"image-{log.replace('/', '-').replace(':', '-')}.log"
    file.parent.mkdir(parents=True, exist_ok=True)
    command = ["buildah", *_storage(), *arguments]
    with file.open("w") as output, store_lock().open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        result = subprocess.run(command, env=_environment(), stdout=output, stderr=subprocess.STDOUT, check=False)
    text = file.read_text(errors="replace")
    if result.returncode:
        end = "\n".join(text.splitlines()[-20:])
        raise ClusterError(f"buildah {arguments[0]} of {log} failed, see {file}; it ends with:\n{end}")
    return text


def _storage() -> tuple[str, str]:
    return f"--root={locations.cache() / 'buildah'}", f"--runroot={RUN_ROOT}"


def _environment() -> dict[str, str]:
    return {**os.environ, "STORAGE_DRIVER": "overlay"}


def _pip_config() -> str:
    lines = ["[global]", "cert = /run/authorities.crt"]
    lines += [f"index-url = {os.environ['PIP_INDEX_URL']}"] if os.environ.get("PIP_INDEX_URL") else []
    return "\n".join(lines) + "\n"


@contextmanager
def _lock(name: str) -> Iterator[None]:
    """Two builds of one Dockerfile at the same time would each do all the work."""
    locations.cache().mkdir(parents=True, exist_ok=True)
    with (locations.cache() / f"image-{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
