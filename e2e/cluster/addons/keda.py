"""KEDA's operator, metrics adapter and admission webhooks as processes of the machine."""

from __future__ import annotations

import shutil
import urllib.error
import urllib.request
from pathlib import Path

from e2e.cluster import binaries, network
from e2e.cluster.addons.addon import Addon, Manifest, RunningNode
from e2e.cluster.addons.host_service import aggregated_api, authority_bundle, host_service, namespace
from e2e.cluster.certificates import KeyPair, alternative_names

NAMESPACE = "keda"
API = "external.metrics.k8s.io"
OPERATOR, ADAPTER, WEBHOOKS = "keda-operator", "keda-adapter", "keda-webhooks"
_ADAPTER_SERVICE, _WEBHOOK_SERVICE = "keda-metrics-apiserver", "keda-admission-webhooks"
_ADAPTER_PORT, _WEBHOOK_PORT = 6444, 9443
_GRPC, _HEALTH = f"{network.ADDRESS}:9666", f"{network.ADDRESS}:8081"
_NO_METRICS = "0"  # a metrics address that means: none
_CHECKED_KINDS = ("scaledobject", "scaledjob", "triggerauthentication", "clustertriggerauthentication")
# A resolv.conf of its own needs mounts of its own. They end with the process.
_RESOLVING = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'


class Keda(Addon):
    """KEDA. It resolves the names of Services as it would in a pod, and refuses what its webhooks refuse."""

    name = "keda"
    programs = ("keda", "keda-crds")

    def __init__(self, node: RunningNode) -> None:
        super().__init__(node)
        self._directory = node.directory / "keda"
        self._authority = node.authority.pair.certificate

    def start(self) -> None:
        """Start the three and return once external metrics and the webhooks are served."""
        self._directory.mkdir(exist_ok=True)
        self.node.kubectl("apply", "--server-side", "-f", f"{binaries.folder('keda-crds')}/")
        self.node.apply(
            namespace(NAMESPACE),
            *host_service(NAMESPACE, _ADAPTER_SERVICE, port=443, listens_on=_ADAPTER_PORT),
            *host_service(NAMESPACE, _WEBHOOK_SERVICE, port=443, listens_on=_WEBHOOK_PORT),
            aggregated_api(API, "v1beta1", NAMESPACE, _ADAPTER_SERVICE, self._authority),
        )
        certificates = self._write_certificates()
        (self._directory / "resolv.conf").write_text(resolver())
        self._start(OPERATOR, self._operator_flags(certificates))
        self._start(ADAPTER, self._adapter_flags(certificates))
        self._start(WEBHOOKS, self._webhook_flags(certificates))
        self._wait()
        self.node.apply(admission(authority_bundle(self._authority)))

    def is_up(self) -> bool:
        """Whether all three run."""
        return all(self.node.daemons.is_running(name) for name in (OPERATOR, ADAPTER, WEBHOOKS))

    def _start(self, name: str, flags: list[str]) -> None:
        if self.node.daemons.is_running(name):
            return
        environment = {
            "KUBECONFIG": str(self.node.kubectl.kubeconfig),
            "WATCH_NAMESPACE": "",  # all; it must be set
            "KEDA_CLUSTER_OBJECT_NAMESPACE": NAMESPACE,
            "POD_NAMESPACE": NAMESPACE,
        }
        command: list[str | Path] = ["unshare", "--mount", "sh", "-c", _RESOLVING, self._directory / "resolv.conf"]
        command += [self.node.bin / name, *flags]
        self.node.daemons.start(name, command, environment=environment)

    def _wait(self) -> None:
        daemons, kubectl = self.node.daemons, self.node.kubectl
        daemons.wait_until(OPERATOR, _is_healthy, seconds=90, what="KEDA's operator is healthy")
        daemons.wait_until(
            WEBHOOKS,
            lambda: self.node.reaches(NAMESPACE, _WEBHOOK_SERVICE),
            seconds=60,
            what="KEDA's webhooks take connections",
        )
        daemons.wait_until(
            ADAPTER,
            lambda: kubectl.attempt("get", "--raw", f"/apis/{API}/v1beta1").returncode == 0,
            seconds=60,
            what="external metrics are served",
        )

    def _write_certificates(self) -> Path:
        """The folder of the one certificate that the three serve with and know each other by."""
        names = [f"{service}.{NAMESPACE}.svc" for service in (_ADAPTER_SERVICE, _WEBHOOK_SERVICE)]
        extensions = [
            alternative_names(names, [network.ADDRESS]),
            "extendedKeyUsage=serverAuth,clientAuth",
        ]
        pair = self.node.authority.issue("keda", "keda", extensions)
        folder = self._directory / "certificates"
        folder.mkdir(exist_ok=True)
        for name, file in _certificate_files(pair, self._authority).items():
            shutil.copy(file, folder / name)
        return folder

    def _operator_flags(self, certificates: Path) -> list[str]:
        return [
            f"--cert-dir={certificates}",
            f"--metrics-bind-address={_NO_METRICS}",
            f"--health-probe-bind-address={_HEALTH}",
            f"--metrics-service-bind-address={_GRPC}",
        ]

    def _adapter_flags(self, certificates: Path) -> list[str]:
        kubeconfig = self.node.kubectl.kubeconfig
        return [
            f"--secure-port={_ADAPTER_PORT}",
            f"--bind-address={network.ADDRESS}",
            "--port=0",  # its own metrics, on a port that is free
            f"--lister-kubeconfig={kubeconfig}",
            f"--authentication-kubeconfig={kubeconfig}",
            f"--authorization-kubeconfig={kubeconfig}",
            f"--cert-dir={certificates}",
            f"--tls-cert-file={certificates / 'tls.crt'}",
            f"--tls-private-key-file={certificates / 'tls.key'}",
            f"--client-ca-file={certificates / 'ca.crt'}",
            f"--metrics-service-address={_GRPC}",
        ]

    def _webhook_flags(self, certificates: Path) -> list[str]:
        return [
            f"--cert-dir={certificates}",
            f"--port={_WEBHOOK_PORT}",
            f"--metrics-bind-address={_NO_METRICS}",
            f"--health-probe-bind-address={_NO_METRICS}",
        ]


def resolver() -> str:
    """A resolv.conf like a pod's."""
    return f"nameserver {network.ADDRESS}\nsearch svc.cluster.local cluster.local\noptions ndots:5\n"


def admission(bundle: str) -> Manifest:
    """KEDA's own webhooks. As KEDA ships them, an API server that cannot reach one lets the object through."""
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "keda-admission"},
        "webhooks": [_webhook(kind, bundle) for kind in _CHECKED_KINDS],
    }


def _webhook(kind: str, bundle: str) -> Manifest:
    path = f"/validate-keda-sh-v1alpha1-{kind}"
    return {
        "name": f"{kind}.keda.sh",
        "admissionReviewVersions": ["v1"],
        "clientConfig": {
            "service": {"name": _WEBHOOK_SERVICE, "namespace": NAMESPACE, "path": path},
            "caBundle": bundle,
        },
        "failurePolicy": "Ignore",
        "sideEffects": "None",
        "rules": [
            {
                "apiGroups": ["keda.sh"],
                "apiVersions": ["v1alpha1"],
                "operations": ["CREATE", "UPDATE"],
                "resources": [f"{kind}s"],
            }
        ],
    }


def _certificate_files(pair: KeyPair, authority: Path) -> dict[str, Path]:
    return {"ca.crt": authority, "tls.crt": pair.certificate, "tls.key": pair.key}


def _is_healthy() -> bool:
    try:
        with urllib.request.urlopen(f"http://{_HEALTH}/readyz", timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
