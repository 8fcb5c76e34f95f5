"""The node's configuration files say what the machine needs them to."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from e2e.cluster import network, node_config, registry
from e2e.cluster.kubeconfig import User, token_file, write_kubeconfig

STATE, CACHE = Path("/state"), Path("/cache")


def test_containerd_keeps_its_images_in_the_cache_and_its_state_out_of_it() -> None:
    config = tomllib.loads(node_config.containerd(STATE, CACHE))
    assert config["root"] == "/cache/containerd"
    assert config["state"].startswith("/state/")
    assert config["grpc"]["address"] == str(node_config.containerd_socket(STATE))


def test_every_registry_is_looked_up_in_the_nodes_own() -> None:
    hosts = tomllib.loads(node_config.registry_hosts())
    assert hosts["host"] == {f"http://{registry.ADDRESS}": {"capabilities": ["pull", "resolve"]}}


def test_kubelet_and_cni_use_the_nodes_own_address_and_bridge() -> None:
    kubelet = json.loads(node_config.kubelet(STATE))
    assert kubelet["address"] == network.ADDRESS
    assert kubelet["clusterDNS"] == [network.ADDRESS]
    assert kubelet["containerRuntimeEndpoint"] == "unix:///state/containerd.sock"
    bridge = json.loads(node_config.cni(STATE))["plugins"][0]
    assert bridge["bridge"] == network.BRIDGE


def test_fake_gpus_are_capacity_and_allocatable() -> None:
    status = json.loads(node_config.fake_gpus())["status"]
    assert status["capacity"] == status["allocatable"] == {"nvidia.com/gpu": "8"}


def test_a_kubeconfig_carries_its_certificate_and_token(tmp_path: Path) -> None:
    authority = tmp_path / "ca.crt"
    authority.write_text("PEM")
    user = User("bob", ("team",), "secret")
    write_kubeconfig(tmp_path / "bob", "https://127.0.0.1:1", authority, user)
    config = json.loads((tmp_path / "bob").read_text())
    assert config["clusters"][0]["cluster"]["certificate-authority-data"] == "UEVN"
    assert config["users"][0]["user"]["token"] == "secret"
    assert token_file([user]) == 'secret,bob,bob,"team"\n'
