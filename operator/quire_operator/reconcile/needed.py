"""What stays though the spec no longer asks for it, until what takes its place serves."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from quire_operator.api import LLMService
from quire_operator.kubeapi.client import Object
from quire_operator.kubeapi.resources import CLAIMS
from quire_operator.reconcile.changes import ChildKey
from quire_operator.reconcile.replicas import has_rolled_out
from quire_operator.reconcile.workloads import predecessor_key, template_of, workload_key


def still_needed(
    service: LLMService, children: Mapping[ChildKey, Object], pods: Sequence[Object]
) -> Collection[ChildKey]:
    """The workload of the other kind, and the claims of which pods serve, or may serve again.

    A pod that is lost cannot be replaced once its claim is being deleted, nor a rollout be taken back.
    """
    before, workload = predecessor_key(service, children), children.get(workload_key(service))
    if service.spec.suspend or (workload is None and before is None):
        return ()
    claims = [key for key in children if key[0] == CLAIMS.kind]
    if has_rolled_out(service, children, pods):
        mounted = _claims_of(workload) if workload is not None else set()
        return [key for key in claims if key[1] in mounted]
    return [*claims, *((before,) if before is not None else ())]


def _claims_of(workload: Object) -> set[str]:
    volumes = (template_of(workload).get("spec") or {}).get("volumes") or []
    return {(volume.get("persistentVolumeClaim") or {}).get("claimName", "") for volume in volumes}
