"""The container runtime of the node."""

from __future__ import annotations

import subprocess

from e2e.cluster import locations, node_config
from e2e.cluster.processes import Daemons


def start(daemons: Daemons) -> None:
    """Start it with the configuration that lies in the node's folder, and return when it serves."""
    socket = node_config.containerd_socket(daemons.directory)
    command = ["ctr", f"--address={socket}", "version"]
    log = daemons.log("containerd")
    begun_at = log.stat().st_size if log.exists() else 0
    daemons.start("containerd", ["containerd", "--config", daemons.directory / "containerd.toml"])
    daemons.wait_until(
        "containerd",
        lambda: subprocess.run(command, capture_output=True, check=False).returncode == 0,
        seconds=30,
        what="containerd serves",
    )
    # Its part for kubelets begins last, and until then answers with an error that ends a kubelet.
    daemons.wait_until(
        "containerd",
        lambda: b"Start streaming server" in log.read_bytes()[begun_at:],
        seconds=30,
        what="containerd serves kubelets",
    )


def remove_other_images(reference: str) -> None:
    """Remove an image's other tags from the content store. A container that runs keeps what it needs."""
    control = ["ctr", f"--address={node_config.containerd_socket(locations.state())}", "--namespace=k8s.io", "images"]
    listed = subprocess.run([*control, "list", "--quiet"], capture_output=True, text=True, check=True).stdout.split()
    name, _, tag = f"docker.io/{reference}".rpartition(":")
    others = [image for image in listed if image.startswith(f"{name}:") and not image.endswith(f":{tag}")]
    if others:
        subprocess.run([*control, "remove", *others], capture_output=True, check=False)
