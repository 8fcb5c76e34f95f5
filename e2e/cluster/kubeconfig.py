"""Kubeconfig files, one for each user."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class User:
    """Someone the API server knows by a bearer token. Rights come from RBAC on the name and the groups."""

    name: str
    groups: tuple[str, ...] = ()
    token: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)


def token_file(users: Iterable[User]) -> str:
    """The text of kube-apiserver's `--token-auth-file`."""
    rows = (f'{user.token},{user.name},{user.name},"{",".join(user.groups)}"' for user in users)
    return "\n".join(rows) + "\n"


def write_kubeconfig(path: Path, server: str, authority: Path, user: User) -> None:
    """Write a file that holds all it needs, the authority's certificate included, and works wherever it is moved."""
    certificate = base64.b64encode(authority.read_bytes()).decode()
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "quire", "cluster": {"server": server, "certificate-authority-data": certificate}}],
        "users": [{"name": user.name, "user": {"token": user.token}}],
        "contexts": [{"name": "quire", "context": {"cluster": "quire", "user": user.name}}],
        "current-context": "quire",
    }
    path.write_text(json.dumps(content, indent=2))  # JSON is YAML
    path.chmod(0o600)
