"""Quire's own two images, tagged by what they are made of: a change is always picked up, the same is built once."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster import locations
from e2e.cluster.builders import Builder
from e2e.cluster.errors import ClusterError
from e2e.cluster.locations import REPOSITORY
from e2e.cluster.progress import say, stage

_ENGINE_COMMAND = REPOSITORY / ".venv" / "bin" / "quire-engine"
_IGNORED = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so")


@dataclass(frozen=True)
class QuireImage:
    """One of the two images: its Dockerfile, and what of the repository goes into its build context."""

    name: str
    sources: tuple[str, ...]
    with_model: bool = False
    root: Path = REPOSITORY
    recipe: str = ""  # the NAME of its Dockerfile, where that is another

    @property
    def dockerfile(self) -> Path:
        """Its Dockerfile, at the root of the repository."""
        return self.root / f"Dockerfile.{self.recipe or self.name}"


ENGINE = QuireImage("engine", ("pyproject.toml", "LICENSE", "engine"), with_model=True)
OPERATOR = QuireImage("operator", ("pyproject.toml", "LICENSE", "engine", "operator"))
ALL = (OPERATOR, ENGINE)


def build(image: QuireImage, builder: Builder) -> str:
    """Build an image into the builder's store unless it is there. Returns its reference, `quire/NAME:VERSION-HASH`.

    QUIRE_TORCH_INDEX_URL takes the engine's torch from another index.
    """
    context = assemble(image, locations.cache() / "contexts" / image.name)
    reference = f"quire/{image.name}:{_version()}-{content_hash(image.dockerfile, context, _arguments(image))}"
    if not builder.is_stored(reference):
        builder.build(reference, image.dockerfile, context, arguments=_arguments(image))
        say(f"  {reference} is {builder.size(reference)} unpacked")
    return reference


def build_dependencies(image: QuireImage, builder: Builder) -> str:
    """Build, ahead of the image itself, the layers that take long: a change of the code does not touch them."""
    context = locations.cache() / "contexts" / f"{image.name}-dependencies"
    shutil.rmtree(context, ignore_errors=True)
    context.mkdir(parents=True)
    shutil.copy2(REPOSITORY / "pyproject.toml", context)
    digest = content_hash(image.dockerfile, context, _arguments(image))
    reference = f"quire/{image.name}-dependencies:{_version()}-{digest}"
    if not builder.is_stored(reference):
        builder.build(reference, image.dockerfile, context, target="dependencies", arguments=_arguments(image))
    return reference


def assemble(image: QuireImage, directory: Path) -> Path:
    """Make the build context: the sources, and the tiny model where this machine has the means to make or has one."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    for name in image.sources:
        source = image.root / name
        if not source.exists():
            raise ClusterError(f"{source} is missing: the {image.name} image is made of it")
        if source.is_dir():
            shutil.copytree(source, directory / name, ignore=_IGNORED)
        else:
            shutil.copy2(source, directory)
    if image.with_model and _ENGINE_COMMAND.exists():
        tiny_model(directory / "models" / "tiny")
    return directory


def tiny_model(directory: Path) -> None:
    """Put the tiny model into a folder, by the virtual environment's own engine. Raises ClusterError."""
    with stage("Making the tiny model (trained once, in up to 3 minutes, then cached)"):
        command: list[str | Path] = [_ENGINE_COMMAND, "tiny", directory]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise ClusterError(f"quire-engine tiny {directory} failed: {result.stderr.strip()[-1500:]}")


def content_hash(dockerfile: Path, context: Path, arguments: dict[str, str]) -> str:
    """Twelve hex digits of everything the build sees, file times and modes apart."""
    digest = hashlib.sha256()
    for name, content in _contents(dockerfile, context, arguments):
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:12]


def _contents(dockerfile: Path, context: Path, arguments: dict[str, str]) -> Iterator[tuple[str, bytes]]:
    yield "Dockerfile", dockerfile.read_bytes()
    yield "arguments", repr(sorted(arguments.items())).encode()
    for file in sorted(context.rglob("*")):
        if file.is_file():
            yield str(file.relative_to(context)), file.read_bytes()


def _arguments(image: QuireImage) -> dict[str, str]:
    index = os.environ.get("QUIRE_TORCH_INDEX_URL", "")
    return {"TORCH_INDEX_URL": index} if index and image is ENGINE else {}


def _version() -> str:
    return str(tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"])
