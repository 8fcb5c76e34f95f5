"""What a service finds in its namespace that is not its own, and what it may therefore not ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quire_operator.api import LLMService
from quire_operator.plan.acceptance import Refusal
from quire_operator.plan.claim_modes import ClaimFacts, one_pod_only
from quire_operator.reconcile.planning import was_accepted

AGAIN_SECONDS = 15.0
"""After which to look again whether what is missing, or forbids a service, is still so."""

_ALLOWS_HOST_PATHS = "privileged"


@dataclass(frozen=True)
class Environment:
    """Claims that others made, the namespace, and what clients ask for."""

    claim: ClaimFacts | None = None
    """The cache's claim, whoever made it; None without one."""

    pod_security: str | None = None
    """Level of Pod Security that the namespace enforces; None where it is not known or none is set."""

    longest_request: int | None = None
    """Tokens; 0 where nothing tells, None where that is not known yet."""


def refusal_by_environment(service: LLMService, environment: Environment, replicas: int) -> Refusal | None:
    """Why the service is not rolled out here. One that was accepted stays so: what runs is no longer a question."""
    if service.spec.suspend or was_accepted(service):
        return None
    claim = environment.claim
    refusal = one_pod_only(service.spec, claim, replicas) if claim is not None else None
    return refusal or _host_path_refused(service, environment.pod_security)


def missing_claims(environment: Environment) -> Sequence[str]:
    """Claims that the spec names and that are not there."""
    claim = environment.claim
    return () if claim is None or claim.exists else (claim.name,)


def _host_path_refused(service: LLMService, level: str | None) -> Refusal | None:
    cache = service.spec.cache
    if cache is None or cache.local is None or cache.local.host_path is None or level in (None, _ALLOWS_HOST_PATHS):
        return None
    namespace = service.metadata.namespace
    return Refusal(
        "PodForbidden",
        f"namespace {namespace} enforces the Pod Security level {level}, which forbids spec.cache.local.hostPath: "
        "write spec.cache.local.ephemeralVolume, or have the level changed with "
        f"`kubectl label namespace {namespace} pod-security.kubernetes.io/enforce=privileged --overwrite`",
    )
