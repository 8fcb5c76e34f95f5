"""Take the node down and leave the machine as it was. The cache stays."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
from pathlib import Path

from e2e.cluster import containerd, locations, network, node_config
from e2e.cluster.builders import RUN_ROOT, store_lock
from e2e.cluster.machine import Machine, unmount_below
from e2e.cluster.one_at_a_time import alone
from e2e.cluster.processes import Daemons
from e2e.cluster.progress import say, stage


def down() -> None:
    """Remove everything that `up` made, whatever state it is in. Does nothing when there is no node."""
    with alone():
        if locations.state().exists():
            take_down()
        else:
            say(f"There is no cluster in {locations.state()}")


def take_down() -> None:
    """What `down` does, for a caller that is `alone` already."""
    state = locations.state()
    with stage("Taking the cluster down"):
        daemons = Daemons(state)
        _remove_pods(daemons)
        daemons.close()
        _kill_shims(state)
        unmount_below(state)
        if (state / "machine.json").exists():
            Machine.load(state / "machine.json").restore()
        network.remove_address()
        shutil.rmtree(state)
        _forget_builds()


def _remove_pods(daemons: Daemons) -> None:
    """Let containerd remove the pods, which takes their network devices and rules with them.

    One that died is started again for it: it finds its pods by what it wrote down.
    """
    daemons.stop("kubelet", "kube-proxy")  # the kubelet would start them again
    if not (daemons.directory / "containerd.toml").exists():
        return
    if not daemons.is_running("containerd"):
        containerd.start(daemons)
    podrm = locations.binaries() / "podrm"
    subprocess.run([podrm, node_config.containerd_socket(daemons.directory)], check=False)
    daemons.stop("containerd", "registry")


def _kill_shims(state: Path) -> None:
    """containerd's shims outlive it where it died first. They name its socket on their command line."""
    address = str(node_config.containerd_socket(state)).encode()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if words[0].rpartition(b"/")[2].startswith(b"containerd-shim") and address in words:
                os.kill(int(folder.name), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            continue


def _forget_builds() -> None:
    """Remove buildah's runtime folder unless it builds right now."""
    with store_lock().open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"An image is being built: {RUN_ROOT} stays")
            return
        unmount_below(RUN_ROOT)
        shutil.rmtree(RUN_ROOT, ignore_errors=True)
