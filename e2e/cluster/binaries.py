"""Build the programs of a cluster into the cache, each once, and link the folders of modules that it needs there."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from e2e.cluster import locations
from e2e.cluster.errors import ClusterError
from e2e.cluster.progress import say, stage
from e2e.cluster.recipes import Recipe, recipes, wrapper

CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
NODE = (*CONTROL_PLANE, "kubelet", "kube-proxy", "podrm", "coredns", "helm")


def ensure(*names: str) -> Path:
    """Build those of `names` that are missing or of another version, and return the folder that holds them.

    Callers in several processes do not build twice: one builds, the others wait for it.
    Raises ClusterError for an unknown name, without Go, and when a build fails.
    """
    wanted = recipes(names)
    if any(not _is_built(recipe) for recipe in wanted):
        require(*names)
        with _build_lock():
            for group in _builds([recipe for recipe in wanted if not _is_built(recipe)]):
                _build(group)
    return locations.binaries()


def ensure_in_turn(*names: str) -> Path:
    """`ensure`, letting others in after each build: a process that needs one of these does not wait for all."""
    for group in _builds(recipes(names)):
        ensure(*(recipe.name for recipe in group))
    return locations.binaries()


def folder(name: str) -> Path:
    """The folder of a module that a recipe names, such as `keda-crds`, downloaded if it is not there."""
    ensure(name)
    return locations.cache() / name


def require(*names: str) -> None:
    """Raise ClusterError when a program of `names` is not built yet and there is no Go to build it with."""
    missing = [recipe.name for recipe in recipes(names) if not _is_built(recipe)]
    if missing and not shutil.which("go"):
        raise ClusterError(
            f"{', '.join(missing)} must be built and there is no `go` on PATH: install Go 1.26 or newer from go.dev/dl"
        )


def find(name: str) -> Path:
    """One program that runs anywhere, such as kubectl: ours if it is built, else the machine's own, else built now."""
    (recipe,) = recipes([name])
    found = shutil.which(name)
    if found and not _is_built(recipe):
        return Path(found)
    return ensure(name) / name


def _builds(wanted: Sequence[Recipe]) -> list[list[Recipe]]:
    """The recipes by what one `go build` makes, in the order in which the first of each is named."""
    builds: dict[tuple[str, ...], list[Recipe]] = {}
    for recipe in wanted:
        builds.setdefault(_same_build(recipe), []).append(recipe)
    return list(builds.values())


def _same_build(recipe: Recipe) -> tuple[str, ...]:
    """What may share one `go build`: packages of one main module with the same flags."""
    own = "" if recipe.module and not recipe.source and not recipe.folder else recipe.name
    return (recipe.workspace, recipe.version, recipe.ldflags, recipe.tags, own)


def _build(group: Sequence[Recipe]) -> None:
    first = group[0]
    if first.folder:
        _link(first)
        return
    names = ", ".join(recipe.name for recipe in group)
    environment = _go_environment()
    fresh = locations.cache() / "fresh"  # a running program's file cannot be written to, but it can be replaced
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    log = locations.cache() / "log" / f"build-{first.name}.log"
    log.parent.mkdir(exist_ok=True)
    with stage(f"Building {names} {first.version} from Go modules"), log.open("w") as output:
        for command, folder in _commands(group, fresh, environment):
            result = subprocess.run(command, cwd=folder, env=environment, stdout=output, stderr=output, check=False)
            if result.returncode:
                raise ClusterError(f"building {names} failed, see {log}; it ends with:\n{_tail(log)}")
    locations.binaries().mkdir(exist_ok=True)
    for recipe in group:
        for file in recipe.packages:
            os.replace(fresh / file, locations.binaries() / file)
        _stamp(recipe)
    shutil.rmtree(fresh)


def _link(recipe: Recipe) -> None:
    with stage(f"Downloading {recipe.name} {recipe.version}"):
        upstream = _download(recipe, _go_environment())
    link = locations.cache() / recipe.name
    link.unlink(missing_ok=True)
    link.symlink_to(upstream / recipe.folder)
    _stamp(recipe)


def _commands(group: Sequence[Recipe], fresh: Path, environment: dict[str, str]) -> Iterator[tuple[list[str], Path]]:
    """The go commands that put the group's programs into `fresh`, each with the folder to run it in."""
    first = group[0]
    flags = ["-ldflags", f"-s -w {first.ldflags}".strip()] + (["-tags", first.tags] if first.tags else [])
    if not first.module:
        environment["GOBIN"] = str(fresh)
        for package in first.packages.values():
            yield ["go", "install", *flags, f"{package}@{first.version}"], fresh
        return
    folder = _main_module(first, environment)
    packages = {file: package for recipe in group for file, package in recipe.packages.items()}
    if all(package.endswith(f"/{file}") for file, package in packages.items()):
        yield ["go", "build", "-mod=mod", *flags, "-o", f"{fresh}/", *packages.values()], folder
        return
    for file, package in packages.items():
        yield ["go", "build", "-mod=mod", *flags, "-o", str(fresh / file), package], folder


def _main_module(recipe: Recipe, environment: dict[str, str]) -> Path:
    upstream = _download(recipe, environment)
    folder = locations.cache() / "src" / recipe.workspace
    folder.mkdir(parents=True, exist_ok=True)
    # written anew before each build: `go get` or an older go.mod would pin what the replaces must decide
    text = wrapper(recipe.workspace, recipe.module, recipe.version, (upstream / "go.mod").read_text())
    (folder / "go.mod").write_text(text)
    if recipe.source:
        shutil.copytree(_source(recipe), folder / recipe.source, dirs_exist_ok=True)
    return folder


def _download(recipe: Recipe, environment: dict[str, str]) -> Path:
    """Fetch the module into Go's own cache. Returns its folder."""
    module = f"{recipe.module}@{recipe.version}"
    command = ["go", "mod", "download", "-json", module]
    result = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise ClusterError(f"go could not download {module}: {result.stdout[-500:]}{result.stderr[-500:]}")
    return Path(json.loads(result.stdout)["Dir"])


def _go_environment() -> dict[str, str]:
    return {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-buildvcs=false -trimpath"}


def _source(recipe: Recipe) -> Path:
    return Path(__file__).parent / recipe.source


def _version(recipe: Recipe) -> str:
    """The version that the stamp bears. Of a program of our own it includes a hash of its source."""
    if not recipe.source:
        return recipe.version
    text = b"".join(file.read_bytes() for file in sorted(_source(recipe).glob("*.go")))
    return f"{recipe.version}-{hashlib.sha256(text).hexdigest()[:8]}"


def _stamps() -> Path:
    return locations.cache() / "stamp"


def _is_built(recipe: Recipe) -> bool:
    if not all((locations.binaries() / file).is_file() for file in recipe.packages):
        return False
    if recipe.folder and not (locations.cache() / recipe.name).exists():  # Go's own cache may have been cleaned
        return False
    return (_stamps() / f"{recipe.name}@{_version(recipe)}").exists()


def _stamp(recipe: Recipe) -> None:
    _stamps().mkdir(exist_ok=True)
    for old in _stamps().glob(f"{recipe.name}@*"):
        old.unlink()
    (_stamps() / f"{recipe.name}@{_version(recipe)}").touch()


@contextmanager
def _build_lock() -> Iterator[None]:
    locations.cache().mkdir(parents=True, exist_ok=True)
    with (locations.cache() / "build.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another process builds programs of the cluster: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
