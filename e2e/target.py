"""The cluster that a demo or a scenario runs on: one that is named, kind where Docker runs, else a node of our own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from e2e.cluster import binaries, containerd, images, locations, node, packages, quire_images
from e2e.cluster.builders import Buildah, Builder, Docker
from e2e.cluster.errors import ClusterError
from e2e.cluster.kubectl import Kubectl
from e2e.cluster.progress import say, stage
from e2e.cluster.quire_images import QuireImage

_KIND_NAME = "quire"


class Target(ABC):
    """A cluster, and how images and requests get to it."""

    builder: Builder
    how_to_remove: str

    @abstractmethod
    def start(self) -> Path:
        """Bring the cluster up where that is ours to do. Returns the kubeconfig."""

    @abstractmethod
    def load(self, reference: str) -> str:
        """Make an image of the builder's store available to pods. Returns the name to write into manifests."""

    def require(self) -> None:
        """Raise ClusterError when this machine lacks what the cluster needs."""
        binaries.require(*(name for name in ("kubectl", "helm") if not shutil.which(name)))

    def prepare_images(self) -> list[str]:
        """Build, while the cluster still comes up, what of the images takes long.

        Returns the names of images that pods can pull already, and so have most of an image's layers.
        """
        for image in quire_images.ALL:
            quire_images.build_dependencies(image, self.builder)
        return []

    def provide(self, image: QuireImage) -> str:
        """Build one of Quire's images if it changed, and make it available to pods. Returns its name for manifests."""
        return self.load(quire_images.build(image, self.builder))

    @contextmanager
    def reach(self, kubectl: Kubectl, service: str, namespace: str) -> Iterator[str]:
        """The URL at which this machine reaches the first port of a Service, by port-forwarding."""
        port = kubectl("get", "service", service, "-n", namespace, "-o", "jsonpath={.spec.ports[0].port}")
        forward = kubectl.start("port-forward", f"service/{service}", f":{port}", "-n", namespace)
        try:
            assert forward.stdout is not None
            line = forward.stdout.readline()  # Forwarding from 127.0.0.1:PORT -> 8000
            if " -> " not in line:
                raise ClusterError(f"kubectl port-forward service/{service} did not start")
            yield f"http://{line.split(' -> ')[0].rpartition(' ')[2]}"
        finally:
            forward.terminate()
            forward.wait()


class OwnNode(Target):
    """The node that `e2e.cluster` brings up on this machine, whose Services are reachable from it."""

    how_to_remove = "make demo-down"
    builder: Buildah

    def __init__(self) -> None:
        self.builder = Buildah()

    def start(self) -> Path:
        """Bring the node up."""
        return node.up()

    def load(self, reference: str) -> str:
        """Push to the node's registry, where containerd looks every name up."""
        images.push_if_absent(reference)
        self.builder.remove_others(reference)
        if node.is_up():
            containerd.remove_other_images(reference)
        return reference

    def require(self) -> None:
        """Raise ClusterError unless this is Linux, we are root, and Go is there to build what is missing."""
        packages.require_bare_linux()
        binaries.require(*binaries.NODE)

    def prepare_images(self) -> list[str]:
        """Build the layers below the code and push them, so that later only the code's are."""
        images.base()
        references = [quire_images.build_dependencies(image, self.builder) for image in quire_images.ALL]
        return [self.load(reference) for reference in references]

    def provide(self, image: QuireImage) -> str:
        """Build one of Quire's images if it changed and push it."""
        images.base()
        return super().provide(image)

    @contextmanager
    def reach(self, kubectl: Kubectl, service: str, namespace: str) -> Iterator[str]:
        """The Service's own address, once kube-proxy has heard of its endpoints: a second after they are ready."""
        where = "jsonpath={.spec.clusterIP} {.spec.ports[0].port}"
        address, port = kubectl("get", "service", service, "-n", namespace, "-o", where).split()
        deadline = time.monotonic() + 30
        while True:
            with suppress(ConnectionRefusedError), socket.create_connection((address, int(port)), timeout=30):
                break
            if time.monotonic() > deadline:
                raise ClusterError(f"service/{service} refuses connections at {address}:{port}: no endpoint is ready")
            time.sleep(0.1)
        yield f"http://{address}:{port}"


class Kind(Target):
    """A kind cluster on this machine's Docker."""

    how_to_remove = f"kind delete cluster --name {_KIND_NAME}"

    def __init__(self) -> None:
        self.builder = Docker()

    def start(self) -> Path:
        """Create the cluster unless it is there."""
        kubeconfig = locations.cache() / "kind.kubeconfig"
        clusters = subprocess.run(["kind", "get", "clusters"], capture_output=True, text=True, check=False)
        locations.cache().mkdir(parents=True, exist_ok=True)
        if _KIND_NAME in clusters.stdout.split():
            _run("kind", "export", "kubeconfig", "--name", _KIND_NAME, "--kubeconfig", str(kubeconfig))
        else:
            with stage("Creating a kind cluster"):
                _run("kind", "create", "cluster", "--name", _KIND_NAME, "--kubeconfig", str(kubeconfig), "--wait=120s")
        return kubeconfig

    def load(self, reference: str) -> str:
        """Copy into kind's node."""
        with stage(f"Loading {reference} into kind"):
            _run("kind", "load", "docker-image", reference, "--name", _KIND_NAME)
        return reference


class Existing(Target):
    """A cluster of the user's, which takes its images from the registry that REGISTRY names."""

    how_to_remove = "helm uninstall quire --namespace quire-system"

    def __init__(self, kubeconfig: Path, registry_prefix: str) -> None:
        self._kubeconfig, self._registry = kubeconfig, registry_prefix
        self.builder = Docker() if Docker.answers() else Buildah(plain_http=False)

    def start(self) -> Path:
        """Nothing to bring up."""
        return self._kubeconfig

    def load(self, reference: str) -> str:
        """Push to the user's registry."""
        destination = f"{self._registry.rstrip('/')}/{reference}"
        self.builder.push(reference, destination)
        return destination


def choose() -> Target:
    """Pick the cluster. Never the current context of a default kubeconfig: only what KUBECONFIG names explicitly.

    Raises ClusterError when that is not confirmed, or REGISTRY is missing.
    """
    named = os.environ.get("KUBECONFIG", "")
    if named and Path(named) != node.kubeconfig():
        return _existing(Path(named))
    if not named and Docker.answers() and shutil.which("kind"):
        say("Docker runs and kind is here: using a kind cluster")
        return Kind()
    say("Using a Kubernetes node of our own on this machine")
    return OwnNode()


def _existing(kubeconfig: Path) -> Existing:
    if not kubeconfig.is_file():
        raise ClusterError(f"KUBECONFIG={kubeconfig}: there is no such file; name one file, or unset it")
    kubectl = Kubectl(kubeconfig)
    context = kubectl("config", "current-context").strip()
    say(f"KUBECONFIG names the context {context}")
    if os.environ.get("CONFIRM") != "1":
        raise ClusterError(
            f"the operator would be installed into the cluster of context {context}: set CONFIRM=1 to agree"
        )
    if not os.environ.get("REGISTRY"):
        raise ClusterError("set REGISTRY to a registry that you may push to and the cluster may pull from")
    return Existing(kubeconfig, os.environ["REGISTRY"])


def _run(*command: str) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise ClusterError(f"{' '.join(command)} failed: {result.stderr.strip()}")
