"""The HorizontalPodAutoscaler, for clusters without KEDA: by waiting requests, as an adapter serves them."""

from __future__ import annotations

from quire_operator.api import LLMService
from quire_operator.builders.circumstances import Circumstances
from quire_operator.builders.engines import engine_of
from quire_operator.builders.identity import Manifest, child_metadata
from quire_operator.builders.scaling import SUFFIX, behavior, wants_scaler
from quire_operator.builders.workload import workload_reference


def build_autoscaler(service: LLMService, circumstances: Circumstances) -> Manifest | None:
    """NAME-scaler with backend hpa; none while suspended, and where something keeps it from scaling.

    The metric bears the engine's name for it, with `_` for the `:` that a metric of pods cannot have.
    """
    scaling = service.spec.autoscaling
    if scaling is None or not wants_scaler(service, circumstances, "hpa"):
        return None
    depth, waiting = scaling.queue, engine_of(service).metrics.waiting
    if depth is None or waiting is None:
        return None
    metric: Manifest = {
        "type": "Pods",
        "pods": {
            "metric": {"name": waiting.replace(":", "_")},
            "target": {"type": "AverageValue", "averageValue": str(depth.target)},
        },
    }
    spec: Manifest = {
        "scaleTargetRef": workload_reference(service),
        "minReplicas": scaling.min_replicas,
        "maxReplicas": scaling.max_replicas,
        "metrics": [metric],
        "behavior": behavior(service),
    }
    metadata = child_metadata(service, SUFFIX)
    return {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": metadata, "spec": spec}
