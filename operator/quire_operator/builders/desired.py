"""Everything that an LLMService becomes."""

from __future__ import annotations

from quire_operator.api import LLMService
from quire_operator.builders.autoscaler import build_autoscaler
from quire_operator.builders.circumstances import Circumstances
from quire_operator.builders.claim import build_claim
from quire_operator.builders.deployment import build_deployment
from quire_operator.builders.disruption_budget import build_disruption_budget
from quire_operator.builders.headless_service import build_headless_service
from quire_operator.builders.identity import APPLIED_HASH, Manifest, digest
from quire_operator.builders.leader_worker_set import build_leader_worker_set
from quire_operator.builders.network_policy import build_network_policy
from quire_operator.builders.prometheus_rule import build_prometheus_rule
from quire_operator.builders.scaled_object import build_scaled_object
from quire_operator.builders.service import build_service
from quire_operator.builders.service_account import build_service_account
from quire_operator.builders.service_monitor import build_service_monitor


def desired_objects(service: LLMService, circumstances: Circumstances) -> list[Manifest]:
    """The children, in the order in which they are applied: what a pod needs comes before the pods."""
    children = (
        build_service_account(service),
        build_network_policy(service, circumstances),
        build_claim(service, circumstances),
        build_service(service),
        build_headless_service(service),
        build_disruption_budget(service),
        build_deployment(service, circumstances),
        build_leader_worker_set(service, circumstances),
        build_service_monitor(service, circumstances.capabilities),
        build_prometheus_rule(service, circumstances),
        build_scaled_object(service, circumstances),
        build_autoscaler(service, circumstances),
    )
    return [_with_hash(child) for child in children if child is not None]


def _with_hash(child: Manifest) -> Manifest:
    metadata = child["metadata"]
    annotations = {**metadata.get("annotations", {}), APPLIED_HASH: digest(child)}
    return {**child, "metadata": {**metadata, "annotations": annotations}}
