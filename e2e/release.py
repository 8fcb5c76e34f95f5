"""The operator, installed by its Helm chart."""

from __future__ import annotations

import subprocess
from pathlib import Path

from e2e.cluster import binaries
from e2e.cluster.errors import ClusterError
from e2e.cluster.kubectl import Kubectl
from e2e.cluster.locations import REPOSITORY
from e2e.cluster.progress import stage

NAME, NAMESPACE = "quire", "quire-system"
_CHART = REPOSITORY / "charts" / "quire-operator"


def install(kubectl: Kubectl, operator_image: str, engine_image: str, *settings: str, chart: Path = _CHART) -> None:
    """Install or upgrade the operator and return when it is available. `settings` are more of Helm's `--set`.

    Raises ClusterError with what Helm, the pods and their Events say.
    """
    values = [f"image.repository={operator_image.rpartition(':')[0]}", f"image.tag={operator_image.rpartition(':')[2]}"]
    values += [f"engineImage={engine_image}", *settings]
    with stage("Installing the operator by its Helm chart"):
        flags = [f"--namespace={NAMESPACE}", "--create-namespace", "--wait", "--timeout=180s"]
        result = _helm(kubectl, "upgrade", "--install", NAME, str(chart), *flags, *(f"--set={v}" for v in values))
        if result.returncode:
            seen = kubectl.attempt("get", "pods,events", "-n", NAMESPACE).stdout
            raise ClusterError(f"helm could not install {chart}: {result.stderr.strip()}\n{seen}")


class UnhealthyError(Exception):
    """The release's own test found something; says what."""


def test(kubectl: Kubectl) -> str:
    """Run the chart's test and return what Helm says of it. Raises UnhealthyError with the pod's last words."""
    result = _helm(kubectl, "test", NAME, f"--namespace={NAMESPACE}", "--timeout=150s")
    if result.returncode:
        where = "jsonpath={.status.containerStatuses[0].state.terminated.message}"
        words = kubectl.attempt("get", "pod", f"{NAME}-operator-test", "-n", NAMESPACE, "-o", where)
        raise UnhealthyError(words.stdout or words.stderr or result.stderr)
    return result.stdout


def is_installed(kubectl: Kubectl) -> bool:
    """Whether there is a release of the operator in the cluster."""
    return _helm(kubectl, "status", NAME, f"--namespace={NAMESPACE}").returncode == 0


def uninstall(kubectl: Kubectl) -> None:
    """Remove the operator. The CRD and the LLMServices stay, as the chart says."""
    _helm(kubectl, "uninstall", NAME, f"--namespace={NAMESPACE}", "--wait", "--ignore-not-found")


def _helm(kubectl: Kubectl, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(binaries.find("helm")), f"--kubeconfig={kubectl.kubeconfig}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)
