"""`make demo`: from nothing to an answer that came through a Kubernetes Service from a pod that Quire made."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from e2e import release
from e2e.cluster import binaries, packages
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
    """All stages, on one cluster."""
    began = time.monotonic()
    prepare(target)
    kubectl = Kubectl(target.start())
    operator_image, engine_image = target.provide(OPERATOR), target.provide(ENGINE)
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
        print("\n")
    say(f"The demo took {time.monotonic() - began:.0f} s")
    print(farewell(target, kubectl))


def prepare(target: Target) -> None:
    """Do at the same time what does not depend on each other: virtual environment, programs, images' lower layers."""
    tasks: list[Callable[[], object]] = [_install, target.prepare_images]
    if isinstance(target, OwnNode):
        packages.ensure()
        tasks.append(lambda: binaries.ensure(*binaries.NODE))
    else:
        tasks.append(lambda: (binaries.find("kubectl"), binaries.find("helm")))
    with ThreadPoolExecutor(len(tasks)) as pool:
        futures: list[Future[object]] = [pool.submit(task) for task in tasks]
        wait(futures, return_when=FIRST_EXCEPTION)
        for future in futures:
            if future.done():
                future.result()


def wait_until_ready(kubectl: Kubectl) -> None:
    """Return once the LLMService is Ready, saying each change of its conditions. Raises ClusterError with the last."""
    deadline = time.monotonic() + _READY_SECONDS
    shown: dict[str, str] = {}
    while True:
        found = json.loads(kubectl("get", "llmservice", SERVICE, "-n", NAMESPACE, "-o", "json"))
        conditions = {c["type"]: _in_words(c) for c in found.get("status", {}).get("conditions", [])}
        for kind, words in conditions.items():
            if shown.get(kind) != words:
                say(f"  {kind}: {words}")
        shown = conditions
        if shown.get("Ready", "").startswith("True"):
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


def farewell(target: Target, kubectl: Kubectl) -> str:
    """How to go on, and how to take it down."""
    with target.reach(kubectl, SERVICE, NAMESPACE) as url:
        address = url
    lines = [
        "Talk to it:",
        f"  .venv/bin/quire-engine chat {address}/v1",
        f"  curl {address}/v1/chat/completions -H 'Content-Type: application/json' \\",
        f'    -d \'{{"model": "{SERVICE}", "messages": [{{"role": "user", "content": "{QUESTION}"}}]}}\'',
        "Look at it:",
        f"  export KUBECONFIG={kubectl.kubeconfig} PATH={Path(binaries.find('kubectl')).parent}:$PATH",
        "  kubectl get llmservices,pods",
    ]
    if not isinstance(target, OwnNode):
        lines[1:1] = [
            f"  kubectl port-forward service/{SERVICE} {address.rpartition(':')[2]}:http   # first, beside it"
        ]
    return "\n".join([*lines, "Take it down:", f"  {target.how_to_remove}"])


def _install() -> None:
    with stage("Installing Quire into .venv (make install)"):
        command = ["make", "--no-print-directory", "install"]
        result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        if result.returncode:
            raise ClusterError(f"make install failed and ends with:\n{(result.stdout + result.stderr)[-2000:]}")


def _pieces(chunk: dict[str, Any]) -> Iterator[str]:
    for choice in chunk.get("choices", []):
        if choice["delta"].get("content"):
            yield choice["delta"]["content"]


def _in_words(condition: dict[str, str]) -> str:
    return f"{condition['status']} {condition.get('reason', '')} {condition.get('message', '')}".strip()


if __name__ == "__main__":
    sys.exit(main())
