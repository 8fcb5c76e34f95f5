"""What a node changes on the machine beyond its own folder: noted before, put back after."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from e2e.cluster import network
from e2e.cluster.errors import ClusterError

_SYSCTLS = (
    "net.ipv4.ip_forward",
    "kernel.panic",
    "kernel.panic_on_oops",
    "vm.overcommit_memory",
    "vm.panic_on_oom",
    "net.bridge.bridge-nf-call-iptables",
)
# paths that the kubelet, containerd, the CNI plugins and the controller manager have built in
_FIXED_PATHS = (
    "/run/containerd",
    "/run/netns",
    "/var/lib/cni",
    "/var/lib/kubelet",
    "/var/log/pods",
    "/var/log/containers",
    "/tmp/hostpath_pv",
)


@dataclass(frozen=True)
class Machine:
    """The machine as it was before the node."""

    sysctls: dict[str, str]
    nft_tables: list[str]
    absent_paths: list[str]
    propagation: str
    ip_sets: list[str] = field(default_factory=list)

    @classmethod
    def observe(cls) -> Machine:
        """The machine as it is now."""
        return cls(
            sysctls={name: _sysctl(name).read_text().strip() for name in _SYSCTLS if _sysctl(name).exists()},
            nft_tables=_nft_tables(),
            absent_paths=[path for path in _FIXED_PATHS if not os.path.lexists(path)],
            propagation=_output("findmnt", "-no", "PROPAGATION", "/").strip(),
            ip_sets=_ip_sets(),
        )

    @classmethod
    def load(cls, file: Path) -> Machine:
        """What `save` wrote."""
        return cls(**json.loads(file.read_text()))

    def save(self, file: Path) -> None:
        """Write it down; an older note stays, since that is how the machine was."""
        if not file.exists():
            file.write_text(json.dumps(asdict(self), indent=2))

    def prepare(self) -> None:
        """Make the changes that a node needs."""
        subprocess.run(["mount", "--make-rshared", "/"], check=True)
        _sysctl("net.ipv4.ip_forward").write_text("1")

    def restore(self) -> None:
        """Put everything back. What was there before the node stays, Kubernetes's own iptables chains apart."""
        network.remove_bridge()
        for table in _nft_tables():
            if table not in self.nft_tables:
                subprocess.run(["nft", "delete", *table.split()], check=False)
        for family in ("", "6"):
            _remove_kubernetes_chains(family)
        for name in _ip_sets():  # after the chains that look into them
            if name not in self.ip_sets:
                subprocess.run(["ipset", "destroy", name], check=False)
        _remove_kubepods()
        for name, value in self.sysctls.items():
            _sysctl(name).write_text(value)
        if self.propagation == "private":
            subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        for path in self.absent_paths:
            unmount_below(Path(path))
            shutil.rmtree(path, ignore_errors=True)


def unmount_below(directory: Path) -> None:
    """Unmount everything in a folder, the innermost first."""
    lines = Path("/proc/mounts").read_text().splitlines()
    points = {line.split()[1].replace("\\040", " ") for line in lines}
    for point in sorted((p for p in points if p.startswith(f"{directory}/")), reverse=True):
        subprocess.run(["umount", "--lazy", point], check=False)


def _remove_kubernetes_chains(family: str) -> None:
    saved = _output(f"ip{family}tables-save")
    if "KUBE-" in saved:
        kept = "".join(line for line in saved.splitlines(keepends=True) if "KUBE-" not in line)
        subprocess.run([f"ip{family}tables-restore"], input=kept, text=True, check=True)


def _remove_kubepods() -> None:
    """Remove the control groups that the kubelet made, the innermost first, and kill what is still in them."""
    folders = [Path(folder) for folder, _, _ in os.walk("/sys/fs/cgroup", topdown=False)]
    for folder in folders:
        if any(part.startswith("kubepods") for part in folder.parts):
            for pid in (folder / "cgroup.procs").read_text().split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            _remove_group(folder)


def _remove_group(folder: Path, seconds: float = 10.0) -> None:
    """A control group is busy until the last of its killed processes is gone."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise ClusterError(f"the control group {folder} cannot be removed: {error}") from error
            time.sleep(0.05)
        else:
            return


def _nft_tables() -> list[str]:
    return _output("nft", "list", "tables").splitlines()


def _ip_sets() -> list[str]:
    return _output("ipset", "list", "-name").splitlines() if shutil.which("ipset") else []


def _sysctl(name: str) -> Path:
    return Path("/proc/sys") / name.replace(".", "/")


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout
