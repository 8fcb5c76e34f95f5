"""etcd, kube-apiserver and, where asked for, the controller manager and the scheduler, as plain processes."""

from __future__ import annotations

import http.client
import json
import random
import signal
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from pathlib import Path

from e2e.cluster import binaries
from e2e.cluster.certificates import Authority, KeyPair, alternative_names
from e2e.cluster.errors import ClusterError
from e2e.cluster.kubeconfig import User, token_file, write_kubeconfig
from e2e.cluster.processes import Daemons

COMPONENTS = ("etcd", "apiserver", "controller-manager", "scheduler")
SERVICE_RANGE, POD_RANGE = "10.96.0.0/16", "10.244.0.0/16"
_FIRST_SERVICE_ADDRESS = "10.96.0.1"
_PROGRAMS = {
    "etcd": "etcd",
    "apiserver": "kube-apiserver",
    "controller-manager": "kube-controller-manager",
    "scheduler": "kube-scheduler",
}
_USERS = {
    "admin": ("system:masters",),
    "system:kube-controller-manager": (),
    "system:kube-scheduler": (),
}


class ControlPlane:
    """A control plane in one folder. RBAC is on; the admin is in system:masters.

    Made by `start_control_plane`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        components: Sequence[str],
        address: str,
        port: int,
        users: Iterable[User],
        daemons: Daemons,
        audited: Sequence[str] = (),
        admission: Sequence[str] = (),
    ) -> None:
        unknown = set(components) - set(COMPONENTS)
        if unknown or not {"etcd", "apiserver"} <= set(components):
            raise ClusterError(f"components {tuple(components)}: write etcd and apiserver, and any of {COMPONENTS[2:]}")
        self.directory = directory
        self.components = tuple(components)
        self.address, self.port, self.etcd_port = address, port, _free_port()
        self.server_url = f"https://{address}:{port}"
        self.daemons = daemons
        self.audited, self.admission = tuple(audited), ("NodeRestriction", *admission)
        self.bin = binaries.ensure(*(_PROGRAMS[component] for component in components), "kubectl")
        own = [User(name, groups) for name, groups in _USERS.items()]
        self.users = {user.name: user for user in [*own, *users]}
        self.authority = Authority(directory / "pki")

    @property
    def kubeconfig(self) -> Path:
        """The admin's."""
        return self.kubeconfig_of("admin")

    @property
    def audit_log(self) -> Path:
        """What the `audited` users asked for, a JSON object a line: a watch as it starts, all else once answered."""
        return self.directory / "audit.log"

    def kubeconfig_of(self, user: str) -> Path:
        """The kubeconfig of one of `users`, by its name."""
        return self.directory / f"{user.replace(':', '-')}.kubeconfig"

    def start(self) -> None:
        """Start all components and return when they serve."""
        self._write_files()
        self._start_etcd()
        self.start_apiserver()
        for component in self.components:
            if component == "controller-manager":
                self.daemons.start(component, self._controller_manager_command())
            elif component == "scheduler":
                self.daemons.start(component, self._scheduler_command())

    def start_apiserver(self) -> None:
        """Start the API server, on the same port as before, and return when it is ready."""
        self.daemons.start("apiserver", self._apiserver_command())
        self.daemons.wait_until("apiserver", self.is_ready, seconds=90, what="the API server is ready")

    def stop_apiserver(self) -> None:
        """Kill the API server: its clients see refused connections. etcd keeps its data."""
        self.daemons.stop("apiserver", how=signal.SIGKILL)

    def restart_apiserver(self) -> None:
        """Kill the API server and start it again on the same port and data."""
        self.stop_apiserver()
        self.start_apiserver()

    def stop(self) -> None:
        """Kill everything. The folder stays, with its logs."""
        self.daemons.close()

    def is_ready(self) -> bool:
        """Whether the API server answers that it is ready."""
        request = urllib.request.Request(f"{self.server_url}/readyz")
        request.add_header("Authorization", f"Bearer {self.users['admin'].token}")
        return _answers(request, ssl.create_default_context(cafile=str(self.authority.pair.certificate)))

    def _write_files(self) -> None:
        names = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")
        addresses = dict.fromkeys(("127.0.0.1", self.address, _FIRST_SERVICE_ADDRESS))
        self._serving = self.authority.issue("apiserver", "kube-apiserver", [alternative_names(names, [*addresses])])
        self._front = self.authority.issue("front-proxy", "front-proxy-client", ["extendedKeyUsage=clientAuth"])
        self._service_account_key = self.authority.signing_key("service-accounts")
        (self.directory / "tokens.csv").write_text(token_file(self.users.values()))
        (self.directory / "tokens.csv").chmod(0o600)
        if self.audited:
            (self.directory / "audit-policy.json").write_text(json.dumps(_audit_policy(self.audited)))
        for user in self.users.values():
            path = self.kubeconfig_of(user.name)
            write_kubeconfig(path, self.server_url, self.authority.pair.certificate, user)

    def _start_etcd(self) -> None:
        """An API server that is up before etcd sits in a back-off of up to 10 s, so etcd is waited for."""
        url = f"http://127.0.0.1:{self.etcd_port}"
        peer = f"http://127.0.0.1:{_free_port()}"
        command: list[str | Path] = [
            self.bin / "etcd",
            f"--data-dir={self.directory / 'etcd'}",
            "--unsafe-no-fsync",  # nothing here has to survive a power cut
            f"--listen-client-urls={url}",
            f"--advertise-client-urls={url}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--watch-progress-notify-interval=5s",  # as kubeadm has it: without, idle watches get no bookmarks
            "--log-level=warn",
        ]
        self.daemons.start("etcd", command)
        health = urllib.request.Request(f"{url}/health")
        self.daemons.wait_until("etcd", lambda: _answers(health), seconds=30, what="etcd is healthy")

    def _apiserver_command(self) -> list[str | Path]:
        command: list[str | Path] = [
            self.bin / "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{self.etcd_port}",
            f"--bind-address={self.address}",
            f"--advertise-address={self.address}",
            f"--secure-port={self.port}",
            *_tls("tls-cert-file", "tls-private-key-file", self._serving),
            f"--client-ca-file={self.authority.pair.certificate}",
            f"--token-auth-file={self.directory / 'tokens.csv'}",
            "--authorization-mode=Node,RBAC",
            f"--enable-admission-plugins={','.join(self.admission)}",
            "--allow-privileged=true",
            "--kubelet-preferred-address-types=InternalIP",  # logs and exec would look up the node's name in DNS
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self._service_account_key}",
            f"--service-account-signing-key-file={self._service_account_key}",
            f"--service-cluster-ip-range={SERVICE_RANGE}",
            f"--requestheader-client-ca-file={self.authority.pair.certificate}",
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            *_tls("proxy-client-cert-file", "proxy-client-key-file", self._front),
        ]
        if self.audited:
            command += [f"--audit-policy-file={self.directory / 'audit-policy.json'}"]
            command += [f"--audit-log-path={self.audit_log}"]
        if self.address.startswith("127."):
            command.append("--endpoint-reconciler-type=none")  # a loopback address is no valid endpoint
        if "controller-manager" not in self.components:
            command.append("--disable-admission-plugins=ServiceAccount")  # nothing would make the default account
        return command

    def _controller_manager_command(self) -> list[str | Path]:
        authority = self.authority.pair
        return [
            self.bin / "kube-controller-manager",
            *self._client_flags("system:kube-controller-manager"),
            f"--secure-port={_free_port()}",
            "--use-service-account-credentials",
            f"--service-account-private-key-file={self._service_account_key}",
            f"--root-ca-file={authority.certificate}",
            f"--cluster-signing-cert-file={authority.certificate}",
            f"--cluster-signing-key-file={authority.key}",
            "--allocate-node-cidrs",
            f"--cluster-cidr={POD_RANGE}",
            f"--service-cluster-ip-range={SERVICE_RANGE}",
            "--enable-hostpath-provisioner",
            "--horizontal-pod-autoscaler-sync-period=5s",
            "--horizontal-pod-autoscaler-downscale-stabilization=10s",
        ]

    def _scheduler_command(self) -> list[str | Path]:
        flags = self._client_flags("system:kube-scheduler")
        return [self.bin / "kube-scheduler", *flags, f"--secure-port={_free_port()}"]

    def _client_flags(self, user: str) -> list[str]:
        kubeconfig = self.kubeconfig_of(user)
        return [
            f"--kubeconfig={kubeconfig}",
            f"--authentication-kubeconfig={kubeconfig}",
            f"--authorization-kubeconfig={kubeconfig}",
            "--bind-address=127.0.0.1",
            "--leader-elect=false",
            "--kube-api-qps=300",  # the default of 20 makes a thousand pods take minutes
            "--kube-api-burst=600",
        ]


def start_control_plane(
    directory: Path,
    *,
    components: Sequence[str] = ("etcd", "apiserver"),
    users: Iterable[User] = (),
    audited: Sequence[str] = (),
    admission: Sequence[str] = (),
) -> ControlPlane:
    """Start a control plane of one's own on free ports of 127.0.0.1, beside any node and any other of its kind.

    It is gone when this process ends, however that happens. `users` are added to the admin; give them rights by RBAC.
    What the users named in `audited` ask for is in `audit_log`; `admission` are plugins that are off by default.
    Without "controller-manager" there is no garbage collection, no default ServiceAccount (pods are admitted without
    one), and Deployments make no pods. Raises ClusterError with the end of the log when a component does not start.
    """
    directory.mkdir(parents=True, exist_ok=True)
    plane = ControlPlane(
        directory.absolute(),
        components=components,
        address="127.0.0.1",
        port=_free_port(),
        users=users,
        daemons=Daemons(directory.absolute(), die_with_us=True),
        audited=audited,
        admission=admission,
    )
    try:
        plane.start()
    except BaseException:
        plane.stop()
        raise
    return plane


def _audit_policy(users: Sequence[str]) -> dict[str, object]:
    return {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [{"level": "Metadata", "users": [*users]}, {"level": "None"}],
    }


def _tls(certificate_flag: str, key_flag: str, pair: KeyPair) -> tuple[str, str]:
    return f"--{certificate_flag}={pair.certificate}", f"--{key_flag}={pair.key}"


def _answers(request: urllib.request.Request, context: ssl.SSLContext | None = None) -> bool:
    try:
        with urllib.request.urlopen(request, timeout=5, context=context) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, http.client.HTTPException, OSError):
        return False


def _free_port() -> int:
    """A port below the range the kernel takes for outgoing connections, so that a restart finds it free again."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
