"""The Job that reads how large a model on a claim is: `quire-engine inspect`, in the engine's own image."""

from __future__ import annotations

from quire_operator.api import GROUP, ClaimSource, LLMService
from quire_operator.builders.circumstances import Circumstances
from quire_operator.builders.identity import FIELD_MANAGER, MANAGED_BY_LABEL, Manifest, digest, owner_reference
from quire_operator.builders.paths import model_location
from quire_operator.builders.pod import CONTAINER, build_pod_template
from quire_operator.settings import Settings

INSPECTION_LABEL = f"{GROUP}/inspection"
"""Of the Job and its pod: which model is read. They bear no label of a service, whose pods they are not."""

INSPECTOR = "inspect"
"""The container that reads. Others may have been injected beside it."""

_DEADLINE_SECONDS = 120
"""Only for one whose operator is gone: a living one deletes it sooner."""

_LIKE_THE_ENGINES = (
    "affinity",
    "automountServiceAccountToken",
    "enableServiceLinks",
    "imagePullSecrets",
    "nodeSelector",
    "priorityClassName",
    "runtimeClassName",
    "schedulerName",
    "securityContext",
    "tolerations",
)
"""A claim that is bound by its first pod has to be bound where the engine can run."""


def inspection_of(source: ClaimSource) -> str:
    """What tells models of a namespace apart, as the value of a label."""
    return digest([source.claim, source.path])


def build_inspection_job(service: LLMService, source: ClaimSource, settings: Settings) -> Manifest:
    """A Job of one pod, which ends with the model's facts as its termination message."""
    inspection, pod = inspection_of(source), _pod(service, settings)
    labels = {
        "app.kubernetes.io/name": "quire",
        "app.kubernetes.io/component": "inspection",
        MANAGED_BY_LABEL: FIELD_MANAGER,
        INSPECTION_LABEL: inspection,
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            # a template cannot be changed, so that a Job left behind by another one bears another name
            "name": f"quire-inspect-{digest([inspection, pod])}",
            "namespace": service.metadata.namespace,
            "labels": labels,
            # services of one model share the Job, and none of them is its controller
            "ownerReferences": [{**owner_reference(service), "controller": False}],
        },
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": _DEADLINE_SECONDS,
            "ttlSecondsAfterFinished": _DEADLINE_SECONDS,
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def _pod(service: LLMService, settings: Settings) -> Manifest:
    engines = build_pod_template(service, Circumstances(settings))["spec"]
    engine = next(container for container in engines["containers"] if container["name"] == CONTAINER)
    return {
        **{field: engines[field] for field in _LIKE_THE_ENGINES if field in engines},
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1,
        "containers": [
            {
                "name": INSPECTOR,
                "image": engine["image"] if service.spec.engine.type == "quire" else settings.engine_image,
                "command": ["quire-engine", "inspect", model_location(service), "--output=/dev/termination-log"],
                "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
                "volumeMounts": [mount for mount in engine["volumeMounts"] if mount["name"] == "model"],
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "securityContext": engine["securityContext"],
            }
        ],
        "volumes": [volume for volume in engines["volumes"] if volume["name"] == "model"],
    }
