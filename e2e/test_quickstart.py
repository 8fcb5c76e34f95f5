"""What docs/quickstart.md tells readers to try is tried, line by line."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import yaml

from e2e.cluster import binaries
from e2e.cluster.kubectl import Kubectl
from e2e.cluster.locations import REPOSITORY
from e2e.llmservice import LLMService, tiny_spec, until

PAGE = REPOSITORY / "docs" / "quickstart.md"
SAMPLE = REPOSITORY / "manifests" / "samples" / "tiny-cpu.yaml"


def things_to_try() -> list[str]:
    """The commands of the block after `Things to try`."""
    _, _, rest = PAGE.read_text().partition("\nThings to try")
    found = re.search(r"```bash\n(.*?)```", rest, re.DOTALL)
    assert found, f"{PAGE.name} has no block of things to try"
    return found[1].splitlines()


def test_the_things_to_try_do_what_the_page_says(
    kubectl: Kubectl, namespace: str, operator: str, tmp_path: Path
) -> None:
    service = LLMService(kubectl, namespace, "tiny")
    service.apply(yaml.safe_load(SAMPLE.read_text())["spec"] | {"resources": tiny_spec()["resources"]})
    service.wait_ready()
    shell = a_readers_shell(kubectl, namespace, tmp_path)

    said: dict[str, str] = {}
    for line in things_to_try():
        result = subprocess.run(line, shell=True, env=shell, capture_output=True, text=True, timeout=330, check=False)
        assert result.returncode == 0, f"{line}\n{result.stderr}\n{service.describe()}"
        said[line.split()[1]] = result.stdout
        if "describe" in line:
            assert service.condition("Available")["status"] == "True"

    assert "http://tiny." in said["get"]
    assert "cannot pull quire/engine:no-such" in said["describe"]
    assert len(said["delete"].splitlines()) >= 2  # one that never served may still be going
    until("two pods again", lambda: service.get()["status"].get("ready") == "2/2", 120)


def a_readers_shell(kubectl: Kubectl, namespace: str, folder: Path) -> dict[str, str]:
    """The environment after the `export` that the demo prints, with `namespace` as its default."""
    kubeconfig = folder / "kubeconfig"
    shutil.copy(kubectl.kubeconfig, kubeconfig)
    reader = Kubectl(kubeconfig)
    reader("config", "set-context", "--current", f"--namespace={namespace}")
    programs = binaries.find("kubectl").parent
    return {**os.environ, "KUBECONFIG": str(kubeconfig), "PATH": f"{programs}:{os.environ['PATH']}"}
