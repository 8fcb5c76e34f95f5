"""`make demo`: from nothing to an answer that came through a Kubernetes Service from a pod that Quire made."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from e2e import prepull, release
from e2e.cluster import binaries, node, quire_images
from e2e.cluster.errors import ClusterError
from e2e.cluster.kubectl import Kubectl
from e2e.cluster.locations import REPOSITORY
from e2e.cluster.progress import say, stage
from e2e.cluster.quire_images import ENGINE, OPERATOR
from e2e.target import OwnNode, Target, choose

SAMPLE = REPOSITORY / "manifests" / "samples" / "tiny-cpu.yaml"
SERVICE, NAMESPACE = "tiny", "default"
QUESTION = "What is Kubernetes?"
_READY_SECONDS = 600.0


def main() -> int:
    """Run the demo. Returns the exit status."""
    try:
        run(choose())
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run(target: Target) -> None:
    """All stages, on one cluster. Raises ClusterError when one fails."""
    began = time.monotonic()
    target.require()
    kubectl, operator_image, engine_image = prepare(target)
    release.install(kubectl, operator_image, engine_image)
    with stage(f"Applying {SAMPLE.relative_to(REPOSITORY)} and waiting until it is Ready"):
        kubectl("apply", "--server-side", "-n", NAMESPACE, "-f", str(SAMPLE))
        wait_until_ready(kubectl)
    print(kubectl("get", "llmservice", SERVICE, "-n", NAMESPACE), flush=True)
    with target.reach(kubectl, SERVICE, NAMESPACE) as url:
        say(f"Asking through the Service, at {url}/v1/chat/completions")
        print(f"\n> {QUESTION}")
        for piece in chat(url, QUESTION):
            print(piece, end="", flush=True)
        print("\n", flush=True)
        say(f"The demo took {time.monotonic() - began:.0f} s")
        print(farewell(target, kubectl, url))


def prepare(target: Target) -> tuple[Kubectl, str, str]:
    """Do at the same time what does not depend on each other, and give the cluster, the operator's and engine's image.

    The virtual environment and the model it trains; the images' lower layers, which the node pulls once both are
    there; and the node, whose programs are built first.
    """
    if isinstance(target, OwnNode):
        node.sweep()  # now, while nothing uses its registry
    with ThreadPoolExecutor(4) as pool:
        model = pool.submit(_install_and_train)
        layers = pool.submit(target.prepare_images)
        cluster = pool.submit(lambda: Kubectl(target.start()))
        operator = pool.submit(lambda: (layers.result(), target.provide(OPERATOR))[1])
        for reference in layers.result():
            prepull.pull(cluster.result(), reference)
        model.result()
        engine_image = target.provide(ENGINE)
        prepull.pull(cluster.result(), engine_image)
        return cluster.result(), operator.result(), engine_image


def wait_until_ready(kubectl: Kubectl) -> None:
    """Return once the LLMService is Ready, saying each change of its conditions. Raises ClusterError with the last."""
    deadline = time.monotonic() + _READY_SECONDS
    shown: dict[str, str] = {}
    while True:
        found = json.loads(kubectl("get", "llmservice", SERVICE, "-n", NAMESPACE, "-o", "json"))
        status = found.get("status", {})
        conditions = {c["type"]: _in_words(c) for c in status.get("conditions", [])}
        for kind, words in conditions.items():
            if shown.get(kind) != words:
                say(f"  {kind}: {words}")
        shown = conditions
        is_current = status.get("observedGeneration") == found["metadata"]["generation"]
        if is_current and shown["Ready"].startswith("True") and not shown.get("Reconciling", "").startswith("True"):
            return
        if time.monotonic() > deadline:
            pods = kubectl.attempt("get", "pods", "-n", NAMESPACE).stdout
            raise ClusterError(f"{SERVICE} is not Ready after {_READY_SECONDS:.0f} s; its conditions: {shown}\n{pods}")
        time.sleep(0.5)


def chat(url: str, question: str) -> Iterator[str]:
    """Ask the model that is served as `tiny` and yield its answer piece by piece, as it is streamed."""
    messages = [{"role": "user", "content": question}]
    body = {"model": SERVICE, "messages": messages, "stream": True, "max_tokens": 64, "temperature": 0}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=120) as response:
        for line in response:
            data = line.decode().strip().removeprefix("data: ")
            if data and data != "[DONE]":
                yield from _pieces(json.loads(data))


def farewell(target: Target, kubectl: Kubectl, url: str) -> str:
    """How to go on, and how to take it down."""
    lines = [
        "Talk to it (so small a model mostly babbles; it knows what Kubernetes is):",
        f"  .venv/bin/quire-engine chat {url}",
        f"  curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\",
        f'    -d \'{{"model": "{SERVICE}", "messages": [{{"role": "user", "content": "{QUESTION}"}}]}}\'',
        "Look at it:",
        f"  export KUBECONFIG={kubectl.kubeconfig} PATH={binaries.find('kubectl').parent}:$PATH",
        "  kubectl get llmservices,pods",
    ]
    if not isinstance(target, OwnNode):
        lines[1:1] = [f"  kubectl port-forward service/{SERVICE} {url.rpartition(':')[2]}:http &"]
    return "\n".join([*lines, "Take it down:", f"  {target.how_to_remove}"])


def _install_and_train() -> None:
    with stage("Installing Quire into .venv (make install)"):
        command = ["make", "--no-print-directory", "install"]
        result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        if result.returncode:
            raise ClusterError(f"make install failed and ends with:\n{(result.stdout + result.stderr)[-2000:]}")
    with tempfile.TemporaryDirectory() as directory:
        quire_images.tiny_model(Path(directory))


def _pieces(chunk: dict[str, Any]) -> Iterator[str]:
    for choice in chunk.get("choices", []):
        if choice["delta"].get("content"):
            yield choice["delta"]["content"]


def _in_words(condition: dict[str, str]) -> str:
    return f"{condition['status']} {condition.get('reason', '')} {condition.get('message', '')}".strip()


if __name__ == "__main__":
    sys.exit(main())
