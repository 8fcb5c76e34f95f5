"""Have an image on the node before anything waits for it."""

from __future__ import annotations

import json

from e2e.cluster.errors import ClusterError
from e2e.cluster.kubectl import Kubectl
from e2e.cluster.progress import stage

_NAMESPACE = "default"
_SECONDS = 900


def pull(kubectl: Kubectl, image: str) -> None:
    """Return once a node has the image, by running a pod of it that ends at once.

    Raises ClusterError with the pod's Events when that does not come to be.
    """
    name = "pull-" + "".join(c if c.isalnum() else "-" for c in image.rpartition("/")[2]).strip("-")
    container = {"name": "pull", "image": image, "command": ["true"]}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"restartPolicy": "Never", "automountServiceAccountToken": False, "containers": [container]},
    }
    with stage(f"Pulling {image} onto the node"):
        kubectl("delete", "pod", name, "-n", _NAMESPACE, "--ignore-not-found")
        kubectl("apply", "-n", _NAMESPACE, "-f", "-", input=json.dumps(pod))
        done = ("--for=jsonpath={.status.phase}=Succeeded", f"--timeout={_SECONDS}s")
        result = kubectl.attempt("wait", f"pod/{name}", "-n", _NAMESPACE, *done, timeout=_SECONDS + 60)
        if result.returncode:
            seen = kubectl.attempt("describe", "pod", name, "-n", _NAMESPACE).stdout
            raise ClusterError(f"{image} could not be pulled: {result.stderr.strip()}\n{seen[-1500:]}")
        kubectl("delete", "pod", name, "-n", _NAMESPACE, "--now")
