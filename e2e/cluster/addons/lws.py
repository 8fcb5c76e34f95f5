"""LeaderWorkerSet from its Helm chart: a Deployment on the node, whose image is made here of the program alone."""

from __future__ import annotations

import shutil
import subprocess
import time

from e2e.cluster import binaries, images, locations, versions
from e2e.cluster.addons.addon import Addon
from e2e.cluster.builders import Buildah
from e2e.cluster.errors import ClusterError

NAMESPACE = "lws-system"
_RELEASE, _WEBHOOK_SERVICE = "lws", "lws-webhook-service"
_IMAGE = f"lws/lws:{versions.LWS}"


class Lws(Addon):
    """The controller and webhooks of leaderworkerset.x-k8s.io."""

    name = "lws"
    programs = ("lws", "lws-chart", "helm")

    def start(self) -> None:
        """Install the chart and return once its webhooks are served."""
        self._provide_image()
        settings = {
            "image.manager.tag": versions.LWS,
            "image.manager.pullPolicy": "IfNotPresent",
            "resources.requests.cpu": "50m",  # the chart's own whole CPU is half of a small machine
            "resources.requests.memory": "64Mi",
        }
        self._helm("uninstall", "--ignore-not-found")  # what is left of an attempt that was cut off
        result = self._helm(
            "install",
            str(binaries.folder("lws-chart")),
            "--create-namespace",
            "--wait",
            "--timeout=240s",
            *(f"--set={key}={value}" for key, value in settings.items()),
        )
        if result.returncode:
            seen = self.node.kubectl.attempt("get", "pods,events", "-n", NAMESPACE).stdout
            raise ClusterError(f"helm could not install LeaderWorkerSet: {result.stderr.strip()}\n{seen}")
        deadline = time.monotonic() + 30  # until kube-proxy has heard of the webhooks, every group would be refused
        while not self.node.reaches(NAMESPACE, _WEBHOOK_SERVICE):
            if time.monotonic() > deadline:
                raise ClusterError(f"LeaderWorkerSet is available and service/{_WEBHOOK_SERVICE} takes no connections")
            time.sleep(0.1)

    def is_up(self) -> bool:
        """Whether its Deployment is available."""
        available = "jsonpath={.items[*].status.availableReplicas}"
        return self.node.kubectl.attempt("get", "deployments", "-n", NAMESPACE, "-o", available).stdout == "1"

    def _helm(self, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        where = (f"--kubeconfig={self.node.kubectl.kubeconfig}", f"--namespace={NAMESPACE}")
        command = [str(self.node.bin / "helm"), verb, _RELEASE, *arguments, *where]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def _provide_image(self) -> None:
        """Push the image that the chart names. The node looks every registry's images up in its own, by path."""
        if not Buildah().is_stored(_IMAGE):
            root = locations.cache() / "lws-image"
            root.mkdir(exist_ok=True)
            shutil.copy2(self.node.bin / "lws", root / "manager")
            # the chart refuses root and an image that does not say who it runs as
            images.from_folder(_IMAGE, root, "--entrypoint", '["/manager"]', "--user", "65532:65532")
            shutil.rmtree(root)
        images.push_if_absent(_IMAGE)
