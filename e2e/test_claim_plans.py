"""Models on a claim are planned before their pods start: what fits is served, what does not is refused with the sum.

Adapters lie on claims as well.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from e2e.cluster.kubectl import Kubectl
from e2e.llmservice import LLMService, tiny_spec, until

HERE = Path(__file__).resolve().parent
CODE = (HERE.parent / "tests" / "operator" / "checkpoints.py", HERE / "small_adapter.py")
FILL = """
import shutil
from pathlib import Path
from checkpoints import LLAMA_8B, write_checkpoint
from small_adapter import write_adapter
shutil.copytree('/models/tiny', '/claim/tiny')
write_checkpoint(Path('/claim/8b'), LLAMA_8B, files=4)
write_adapter(Path('/models/tiny'), Path('/claim/adapter'))
"""


@pytest.fixture(scope="module")
def claim(kubectl: Kubectl, module_namespace: str, engine_image: str) -> str:
    """A claim with the small model in `tiny`, its adapter in `adapter`, and in `8b` 16 GB of weights that are holes."""
    namespace = module_namespace
    volume = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    apply(kubectl, namespace, "v1", "PersistentVolumeClaim", "models", volume)
    files = [f"--from-file={file}" for file in CODE]
    script = kubectl("create", "configmap", "code", *files, "--dry-run=client", "-o", "yaml")
    kubectl("apply", "-n", namespace, "-f", "-", input=script)
    container = {
        "name": "fill",
        "image": engine_image,
        "command": ["python3", "-c", FILL],
        "env": [{"name": "PYTHONPATH", "value": "/code"}],
        "volumeMounts": [{"name": "models", "mountPath": "/claim"}, {"name": "code", "mountPath": "/code"}],
    }
    volumes = [
        {"name": "models", "persistentVolumeClaim": {"claimName": "models"}},
        {"name": "code", "configMap": {"name": "code"}},
    ]
    pod = {"restartPolicy": "Never", "containers": [container], "volumes": volumes}
    apply(kubectl, namespace, "v1", "Pod", "fill", pod)
    done = "--for=jsonpath={.status.phase}=Succeeded"
    kubectl("wait", "pod/fill", "-n", namespace, done, "--timeout=120s", timeout=150)
    kubectl("delete", "pod/fill", "-n", namespace)
    return namespace


def apply(kubectl: Kubectl, namespace: str, version: str, kind: str, name: str, spec: dict[str, Any]) -> None:
    metadata = {"name": name, "namespace": namespace}
    manifest = {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}
    kubectl("apply", "--server-side", "-f", "-", input=json.dumps(manifest))


def test_a_model_that_is_too_large_is_refused_with_the_sum(kubectl: Kubectl, operator: str, claim: str) -> None:
    service = LLMService(kubectl, claim, "large")
    gpu = {"count": 1, "memoryGiB": 16}
    service.apply(
        tiny_spec(model={"source": "pvc://models/8b"}, resources={"gpu": gpu, "cpu": "200m", "memory": "4Gi"})
    )
    condition = until("a verdict", lambda: service.condition("Accepted"), 60)
    assert (condition["status"], condition["reason"]) == ("False", "DoesNotFit"), service.describe()
    assert "weights 14.96 GiB" in condition["message"]
    assert service.pods() == []
    assert kubectl.attempt("get", "deployment", "large", "-n", claim).returncode != 0


def test_a_model_that_fits_is_served_with_its_plan(kubectl: Kubectl, operator: str, claim: str) -> None:
    service = LLMService(kubectl, claim, "small")
    service.apply(tiny_spec(model={"source": "pvc://models/tiny", "name": "tiny"}))
    service.wait_ready()
    status = service.get()["status"]
    assert status["plan"]["verdict"] == "Fits"
    assert status["model"]["parameters"] > 0
    assert service.client().completions.create(model="tiny", prompt="Return", max_tokens=4).choices[0].text
    jobs = ("get", "jobs", "-n", claim, "-o", "name")
    until("the Jobs gone", lambda: kubectl(*jobs).strip() == "", 60)


def test_an_adapter_on_a_claim_of_its_own_is_mounted_and_answers(kubectl: Kubectl, operator: str, claim: str) -> None:
    service = LLMService(kubectl, claim, "adapted")
    adapters = [{"name": "sql", "source": "pvc://models/adapter"}]
    service.apply(tiny_spec(model={"source": "image:///models/tiny", "name": "tiny", "adapters": adapters}))
    service.wait_ready()
    (container,) = service.pods()[0]["spec"]["containers"]
    mounted = {mount["mountPath"]: mount.get("readOnly") for mount in container["volumeMounts"]}
    assert mounted["/models/claims/models"] is True
    ask = service.client().completions.create
    answers = [
        ask(model=name, prompt="Return", max_tokens=8, temperature=0).choices[0].text for name in ("tiny", "sql")
    ]
    assert answers[0] != answers[1]
