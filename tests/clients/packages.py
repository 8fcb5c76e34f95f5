"""Clients as their registries give them, each set up once and kept where the cluster's binaries are."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from e2e.cluster import locations

NODE_OPENAI = "openai@7"
PYTHON_CLIENTS = ("langchain-openai>=1", "lm-eval[api]>=0.4.9")


def node_client() -> Path:
    """A folder whose scripts can import OpenAI's package for Node."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not on PATH")
    return _set_up("node", NODE_OPENAI, ["npm", "install", "--silent", "--no-audit", "--no-fund", NODE_OPENAI])


def python_clients() -> Path:
    """The Python of an environment with LangChain's and EleutherAI's packages.

    Torch and transformers are this environment's own: they are 5 GB, and the same.
    """
    folder = _set_up(
        "python",
        "\n".join((*PYTHON_CLIENTS, sys.version)),
        [sys.executable, "-m", "venv", "."],
        ["bin/pip", "install", "--quiet", *PYTHON_CLIENTS],
    )
    (link,) = folder.glob("lib/python3*/site-packages")
    (link / "quire.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin" / "python"


def _set_up(name: str, what: str, *commands: list[str]) -> Path:
    folder = locations.cache() / "clients" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = folder / "stamp"
        if not stamp.is_file() or stamp.read_text() != what:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for command in commands:
                subprocess.run(command, cwd=folder, check=True, timeout=900)
            stamp.write_text(what)
    return folder
