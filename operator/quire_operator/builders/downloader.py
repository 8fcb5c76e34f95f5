"""What runs `quire-engine prefetch`, in a Job or before an engine: small, and as hardened as any of the pods."""

from __future__ import annotations

from quire_operator.api import LLMService
from quire_operator.api.names import SecretKeyRef
from quire_operator.builders.identity import Manifest
from quire_operator.settings import Settings

REQUESTS = {"cpu": "100m", "memory": "512Mi"}
MEMORY_LIMIT = "1Gi"
"""Much of it is for what was written and is not on the disk yet."""

HARDENED: Manifest = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
"""`securityContext` of every container."""


def downloader(service: LLMService, settings: Settings) -> Manifest:
    """The fields of such a container that are always the same. Another engine's image cannot download: ours does."""
    image = service.spec.engine.image if service.spec.engine.type == "quire" else None
    return {
        "image": image or settings.engine_image,
        "resources": {"requests": dict(REQUESTS), "limits": {"memory": MEMORY_LIMIT}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": dict(HARDENED),
    }


def hub_variables(service: LLMService, settings: Settings) -> list[Manifest]:
    """Which hub is asked, and with which token."""
    variables = [plain("HF_ENDPOINT", settings.hub_endpoint)] if settings.hub_endpoint else []
    token = service.spec.model.token_secret_ref
    if token is not None:
        variables += [secret(name, token) for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")]
    return variables


def plain(name: str, value: str) -> Manifest:
    """A variable."""
    return {"name": name, "value": value}


def secret(name: str, ref: SecretKeyRef) -> Manifest:
    """A variable that the kubelet takes from a Secret."""
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": ref.name, "key": ref.key}}}
