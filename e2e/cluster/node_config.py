"""The configuration files of the node's programs, as text."""

from __future__ import annotations

import json
from pathlib import Path

from e2e.cluster import network, registry
from e2e.cluster.control_plane import POD_RANGE
from e2e.cluster.images import PAUSE

NODE = "quire-node"
FAKE_GPUS = 8
_NODE_POD_RANGE = "10.244.0.0/24"
_MTU = 1400  # what a virtual machine's own interface often has; larger packets would be lost


def containerd(state: Path, cache: Path) -> str:
    """containerd's TOML. Its content store is in the cache: a large image is pulled once, not once a cluster."""
    return f"""\
version = 2
root = "{cache / "containerd"}"
state = "{state / "containerd"}"
[grpc]
  address = "{containerd_socket(state)}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{registry.ADDRESS}/{PAUSE}"
  # without CAP_SYS_RESOURCE runc may not lower a score, and every pod would die of it
  restrict_oom_score_adj = true
  max_concurrent_downloads = 6
  [plugins."io.containerd.grpc.v1.cri".containerd]
    discard_unpacked_layers = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{state / "registries"}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{state / "cni"}"
"""


def containerd_socket(state: Path) -> Path:
    """Where containerd listens."""
    return state / "containerd.sock"


def registry_hosts() -> str:
    """containerd's hosts.toml: look an image up, by path, in the node's registry, whatever registry its name bears."""
    return f'[host."http://{registry.ADDRESS}"]\n  capabilities = ["pull", "resolve"]\n'


def cni(state: Path) -> str:
    """One bridge for all pods, with host ports."""
    bridge = {
        "type": "bridge",
        "bridge": network.BRIDGE,
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "mtu": _MTU,
        "ipam": {
            "type": "host-local",
            "dataDir": str(state / "addresses"),
            "ranges": [[{"subnet": _NODE_POD_RANGE}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return json.dumps({"cniVersion": "1.0.0", "name": "quire", "plugins": [bridge, ports]}, indent=2)


def kubelet(state: Path) -> str:
    """The KubeletConfiguration. It listens on the node's own address, which the machine alone can reach."""
    return json.dumps(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": network.ADDRESS,
            "readOnlyPort": 0,
            "cgroupDriver": "cgroupfs",
            "failSwapOn": False,
            "failCgroupV1": False,
            "oomScoreAdj": 0,
            "maxOpenFiles": 20_000,
            "containerRuntimeEndpoint": f"unix://{containerd_socket(state)}",
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "clusterDNS": [network.ADDRESS],
            "clusterDomain": "cluster.local",
            "resolvConf": "/etc/resolv.conf",
            # images are large and slow to pull: keep them, and evict only when the disk is really full
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "evictionHard": {
                "memory.available": "100Mi",
                "nodefs.available": "1%",
                "imagefs.available": "1%",
                "nodefs.inodesFree": "1%",
            },
            "serializeImagePulls": False,
            "maxPods": 200,
        },
        indent=2,
    )


def kube_proxy(kubeconfig: Path) -> str:
    """The KubeProxyConfiguration. It leaves the machine's conntrack settings alone."""
    return json.dumps(
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": str(kubeconfig)},
            "mode": "nftables",
            "nftables": {"minSyncPeriod": "100ms"},  # a new Service answers at once, not after a second
            "clusterCIDR": POD_RANGE,
            "hostnameOverride": NODE,
            "oomScoreAdj": 0,
            "healthzBindAddress": "127.0.0.1:10256",
            "metricsBindAddress": "127.0.0.1:10249",
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        },
        indent=2,
    )


def coredns(kubeconfig: Path) -> str:
    """The Corefile: cluster names from the API server, the rest from the machine's own resolver."""
    return f"""\
.:53 {{
  bind {network.ADDRESS}
  errors
  kubernetes cluster.local in-addr.arpa ip6.arpa {{
    kubeconfig {kubeconfig} quire
    ttl 1
  }}
  forward . /etc/resolv.conf
  cache 5
}}
"""


def storage_class() -> str:
    """The default StorageClass: the controller manager itself makes a folder for each claim."""
    return json.dumps(
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": "standard", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
            "provisioner": "kubernetes.io/host-path",
        }
    )


def fake_gpus() -> str:
    """A patch of the node's status. The kubelet keeps an extended resource it does not know.

    Both fields, or the first pod waits for the kubelet to copy one into the other.
    """
    gpus = {"nvidia.com/gpu": str(FAKE_GPUS)}
    return json.dumps({"status": {"capacity": gpus, "allocatable": gpus}})
