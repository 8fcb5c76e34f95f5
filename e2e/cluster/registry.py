"""The image registry of the node. It runs without the node too, so that images are pushed while that is still built."""

from __future__ import annotations

import fcntl
import json
import urllib.error
import urllib.request

from e2e.cluster import locations, network
from e2e.cluster.processes import Daemons

ADDRESS = f"{network.ADDRESS}:5000"
_MANIFESTS = ", ".join(
    ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
)


def config(address: str, directory: str) -> str:
    """The configuration file: YAML, of which JSON is a part."""
    return json.dumps(
        {
            "version": 0.1,
            "log": {"accesslog": {"disabled": True}, "level": "warn"},
            "storage": {"filesystem": {"rootdirectory": directory}, "delete": {"enabled": True}},
            "http": {"addr": address},
        }
    )


def start() -> None:
    """Start the registry unless it runs, and return when it serves. Its contents are in the cache."""
    locations.cache().mkdir(parents=True, exist_ok=True)
    with (locations.cache() / "registry.lock").open("w") as lock:  # an image and the node may ask at the same time
        fcntl.flock(lock, fcntl.LOCK_EX)
        daemons = Daemons(locations.state())
        if daemons.is_running("registry"):
            return
        network.add_address()
        file = daemons.directory / "registry.yaml"
        file.write_text(config(ADDRESS, str(locations.cache() / "registry")))
        daemons.start("registry", ["docker-registry", "serve", file], environment={"OTEL_TRACES_EXPORTER": "none"})
        daemons.wait_until("registry", is_up, seconds=20, what="the registry serves")


def is_up() -> bool:
    """Whether the registry answers."""
    return _answers("")


def holds(reference: str) -> bool:
    """Whether the registry has this image, such as `quire/engine:0.1.0`."""
    name, _, tag = reference.rpartition(":")
    return _answers(f"{name}/manifests/{tag}")


def _answers(path: str) -> bool:
    request = urllib.request.Request(f"http://{ADDRESS}/v2/{path}", method="HEAD" if path else "GET")
    request.add_header("Accept", _MANIFESTS)
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
