"""One real node: a control plane at a fixed address, containerd, kubelet, kube-proxy, CoreDNS and an image registry."""

from __future__ import annotations

import shutil
from pathlib import Path

from e2e.cluster import binaries, containerd, images, locations, network, node_config, packages, registry, teardown
from e2e.cluster.builders import Buildah
from e2e.cluster.control_plane import COMPONENTS, ControlPlane
from e2e.cluster.errors import ClusterError
from e2e.cluster.kubeconfig import User
from e2e.cluster.kubectl import Kubectl
from e2e.cluster.machine import Machine
from e2e.cluster.one_at_a_time import alone
from e2e.cluster.processes import Daemons
from e2e.cluster.progress import say, stage

_NODE_USER, _PROXY_USER = f"system:node:{node_config.NODE}", "system:kube-proxy"
_PORT = 6443
_CONTROL_PLANE_DAEMONS = (*COMPONENTS, "open-volumes")
_DAEMONS = (*_CONTROL_PLANE_DAEMONS, "registry", "containerd", "kubelet", "kube-proxy", "coredns")
# The controller manager makes a volume's folder for root alone, and host paths ignore fsGroup.
_OPEN_VOLUMES = "while sleep 0.3; do chmod -f 0777 /tmp/hostpath_pv/*; done"


def kubeconfig() -> Path:
    """The admin's kubeconfig of the node, running or not."""
    return locations.state() / "admin.kubeconfig"


def is_up() -> bool:
    """Whether the whole node runs."""
    return _runs(_DAEMONS) and _ready_file().exists()


def up(*, control_plane_only: bool = False) -> Path:
    """Bring the node up and return its kubeconfig. What runs already is left alone; what is broken is made anew.

    Raises ClusterError where a program is missing, cannot be built or does not start.
    """
    packages.ensure()
    wanted = binaries.CONTROL_PLANE if control_plane_only else binaries.NODE
    bin_folder = binaries.ensure(*wanted)
    if not control_plane_only:
        images.base()
    with alone():
        if is_up() or (control_plane_only and _runs(_CONTROL_PLANE_DAEMONS)):
            if not control_plane_only:
                _offer_fake_gpus(Kubectl(kubeconfig()))
            say(f"The cluster is already up: {kubeconfig()}")
            return kubeconfig()
        _sweep()
        with stage("Starting the control plane" if control_plane_only else "Starting the node"):
            _start(bin_folder, control_plane_only)
    return kubeconfig()


def sweep() -> None:
    """Take down a node that is not whole, so that it can be made anew. A registry alone is in nobody's way."""
    with alone():
        _sweep()


def _sweep() -> None:
    if locations.state().exists() and not is_up() and set(Daemons(locations.state()).names()) - {"registry"}:
        say("A cluster that is not whole is in the way")
        teardown.take_down()


def prune() -> None:
    """Remove what only ever grows: old image layers, the registry's contents and the node's content store.

    The current images stay in buildah's store; the next `up` pushes and pulls them again. Raises ClusterError if up.
    """
    if locations.state().exists():
        raise ClusterError("the node is up and uses its images: python3 -m e2e.cluster down, then prune")
    with stage("Removing old image layers, the registry's contents and the node's content store"):
        for folder in ("registry", "containerd"):
            shutil.rmtree(locations.cache() / folder, ignore_errors=True)
        Buildah().run("rmi", "--prune", log="prune")


def status() -> str:
    """What runs, in a few lines."""
    if not locations.state().exists():
        return "no cluster: python3 -m e2e.cluster up"
    daemons = Daemons(locations.state())
    lines = [f"{name:20} {f'pid {pid}' if (pid := daemons.pid(name)) else 'DEAD'}" for name in daemons.names()]
    lines.append(f"export KUBECONFIG={kubeconfig()} PATH={locations.binaries()}:$PATH")
    return "\n".join(lines)


def _runs(names: tuple[str, ...]) -> bool:
    if not locations.state().exists():
        return False
    daemons = Daemons(locations.state())
    return all(daemons.is_running(name) for name in names)


def _ready_file() -> Path:
    return locations.state() / "ready"


def _start(bin_folder: Path, control_plane_only: bool) -> None:
    state = locations.state()
    daemons = Daemons(state)
    machine = Machine.observe()
    machine.save(state / "machine.json")
    network.add_address()
    plane = ControlPlane(
        state,
        components=COMPONENTS,
        address=network.ADDRESS,
        port=_PORT,
        users=[User(_NODE_USER, ("system:nodes",)), User(_PROXY_USER)],
        daemons=daemons,
    )
    plane.start()
    daemons.start("open-volumes", ["sh", "-c", _OPEN_VOLUMES])
    say("  the control plane is up")
    kubectl = Kubectl(plane.kubeconfig)
    if not control_plane_only:
        machine.prepare()
        _write_files(plane)
        registry.start()
        images.push_if_absent(images.PAUSE)
        _start_node_daemons(bin_folder, plane)
        kubectl.until_it_works("wait", "--for=condition=Ready", f"node/{node_config.NODE}", "--timeout=5s")
        say("  the node is Ready")
        kubectl("apply", "--server-side", "-f", "-", input=node_config.storage_class())
        _offer_fake_gpus(kubectl)
    kubectl.until_it_works("get", "serviceaccount", "default")  # pods are refused before it is there
    if not control_plane_only:
        images.push_if_absent(images.BASE)
        _ready_file().touch()


def _write_files(plane: ControlPlane) -> None:
    state = plane.directory
    files = {
        "containerd.toml": node_config.containerd(state, locations.cache()),
        "cni/10-quire.conflist": node_config.cni(state),
        "registries/_default/hosts.toml": node_config.registry_hosts(),
        f"registries/{registry.ADDRESS}/hosts.toml": node_config.registry_hosts(),
        "kubelet.json": node_config.kubelet(state),
        "kube-proxy.json": node_config.kube_proxy(plane.kubeconfig_of(_PROXY_USER)),
        "Corefile": node_config.coredns(plane.kubeconfig),
    }
    for name, text in files.items():
        (state / name).parent.mkdir(parents=True, exist_ok=True)
        (state / name).write_text(text)


def _start_node_daemons(bin_folder: Path, plane: ControlPlane) -> None:
    state, daemons = plane.directory, plane.daemons
    containerd.start(daemons)
    kubelet: list[str | Path] = [
        bin_folder / "kubelet",
        f"--config={state / 'kubelet.json'}",
        f"--kubeconfig={plane.kubeconfig_of(_NODE_USER)}",
        f"--hostname-override={node_config.NODE}",
        f"--node-ip={network.ADDRESS}",
        f"--root-dir={state / 'kubelet'}",
        f"--cert-dir={state / 'kubelet-pki'}",
    ]
    daemons.start("kubelet", kubelet)
    daemons.start("kube-proxy", [bin_folder / "kube-proxy", f"--config={state / 'kube-proxy.json'}"])
    daemons.start("coredns", [bin_folder / "coredns", "-conf", state / "Corefile"])


def _offer_fake_gpus(kubectl: Kubectl) -> None:
    kubectl("patch", "node", node_config.NODE, "--subresource=status", "--patch", node_config.fake_gpus())
