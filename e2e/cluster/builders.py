"""Two tools that build the same Dockerfiles: buildah, which needs no daemon, and docker, where an engine answers."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from e2e.cluster import locations
from e2e.cluster.errors import ClusterError
from e2e.cluster.progress import stage

RUN_ROOT = Path("/run/quire-buildah")
_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")


class Builder(Protocol):
    """Builds images into a store of its own and pushes them from there. Every method raises ClusterError."""

    def build(
        self, reference: str, dockerfile: Path, context: Path, *, target: str = "", arguments: Mapping[str, str]
    ) -> None:
        """Build `dockerfile`, or its stage `target`, as `reference`."""

    def is_stored(self, reference: str) -> bool:
        """Whether the store has this image."""

    def size(self, reference: str) -> str:
        """The image's size, unpacked, such as `5.41 GB`."""

    def push(self, reference: str, destination: str) -> None:
        """Push an image of the store under another name. Layers that are there already cost nothing."""


class Buildah:
    """buildah, with its store in the cache. The node's registry speaks plain http, so pushes to it do."""

    def __init__(self, *, plain_http: bool = True) -> None:
        self._plain_http = plain_http

    def build(
        self, reference: str, dockerfile: Path, context: Path, *, target: str = "", arguments: Mapping[str, str]
    ) -> None:
        """Build on the host's network: a build of its own network would leave a bridge and rules behind."""
        pip = locations.cache() / "pip.conf"
        pip.write_text(_pip_config())
        command = ["build", "--layers", "--network=host", f"--file={dockerfile}", f"--tag={reference}"]
        # pip inside the build trusts what this machine trusts; the files are mounted, so nothing of them stays
        command += [f"--volume={pip}:/etc/pip.conf:ro", f"--volume={_AUTHORITIES}:/run/authorities.crt:ro"]
        command += _build_flags(target, arguments)
        with _lock(dockerfile.name), stage(f"Building {reference}"):
            self.run(*command, str(context), log=reference)

    def is_stored(self, reference: str) -> bool:
        """Whether buildah's store has this image."""
        command = ["buildah", *_storage(), "inspect", "--type=image", reference]
        return subprocess.run(command, env=_storage_driver(), capture_output=True, check=False).returncode == 0

    def size(self, reference: str) -> str:
        """The image's size, unpacked, such as `5.41 GB`."""
        return str(json.loads(self.run("images", "--json", reference, log="size"))[0]["size"])

    def push(self, reference: str, destination: str) -> None:
        """Push to a registry."""
        plain = ["--tls-verify=false"] if self._plain_http else []
        with stage(f"Pushing {reference} to {destination.split('/')[0]}"):
            self.run("push", *plain, reference, f"docker://{destination}", log=reference)

    def remove_others(self, reference: str) -> None:
        """Remove this image's other tags, with the layers that only they have: each set of torch's is 6 GB."""
        name = reference.rpartition(":")[0]
        images = json.loads(self.run("images", "--json", log="others"))
        tags = {tag.removeprefix("localhost/") for image in images for tag in image.get("names") or ()}
        tags = {tag for tag in tags if tag.rpartition(":")[0] == name}
        for tag in sorted(tags - {reference}):
            self.run("rmi", "--force", tag, log="others")

    def run(self, *arguments: str, log: str) -> str:
        """Run buildah, keep what it says in a log named after the image, and return it."""
        with store_lock().open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            return _run(["buildah", *_storage(), *arguments], _storage_driver(), log)


class Docker:
    """The docker command with a working engine behind it."""

    @staticmethod
    def answers() -> bool:
        """Whether there is a docker command and its engine answers."""
        if not shutil.which("docker"):
            return False
        return subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0

    def build(
        self, reference: str, dockerfile: Path, context: Path, *, target: str = "", arguments: Mapping[str, str]
    ) -> None:
        """Build with docker's own cache."""
        command = ["docker", "build", f"--file={dockerfile}", f"--tag={reference}", *_build_flags(target, arguments)]
        with stage(f"Building {reference}"):
            _run([*command, str(context)], {}, reference)

    def is_stored(self, reference: str) -> bool:
        """Whether the engine has this image."""
        command = ["docker", "image", "inspect", reference]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def size(self, reference: str) -> str:
        """The image's size, unpacked, such as `5.41 GB`."""
        text = _run(["docker", "image", "inspect", "--format={{.Size}}", reference], {}, "size")
        return f"{int(text) / 1e9:.2f} GB"

    def push(self, reference: str, destination: str) -> None:
        """Push to a registry that `docker login` knows."""
        with stage(f"Pushing {destination}"):
            _run(["docker", "tag", reference, destination], {}, reference)
            _run(["docker", "push", destination], {}, reference)


def store_lock() -> Path:
    """Held, shared, while buildah runs."""
    return locations.cache() / "buildah.lock"


def _build_flags(target: str, arguments: Mapping[str, str]) -> list[str]:
    flags = [f"--build-arg={key}={value}" for key, value in arguments.items()]
    return [*flags, f"--target={target}"] if target else flags


def _run(command: list[str], environment: Mapping[str, str], log: str) -> str:
    file = locations.cache() / "log" / f"image-{log.replace('/', '-').replace(':', '-')}.log"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as output:
        settings = {**os.environ, **environment}
        result = subprocess.run(command, env=settings, stdout=output, stderr=subprocess.STDOUT, check=False)
    text = file.read_text(errors="replace")
    if result.returncode:
        end = "\n".join(text.splitlines()[-20:])
        raise ClusterError(f"{' '.join(command)} failed, see {file}; it ends with:\n{end}")
    return text


def _storage() -> tuple[str, str]:
    return f"--root={locations.cache() / 'buildah'}", f"--runroot={RUN_ROOT}"


def _storage_driver() -> dict[str, str]:
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
