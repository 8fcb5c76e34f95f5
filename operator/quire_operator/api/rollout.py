"""`spec.rollout`, `spec.probes` and `spec.scheduling`: how pods start, are replaced and find a node."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from quire_operator.api.fields import Fields
from quire_operator.api.names import Opaque, StringMap
from quire_operator.api.rule import Rule

_COUNT = r"[0-9]{1,6}|[0-9]{1,3}%"

PodCount = Annotated[
    int | str,
    BeforeValidator(lambda value: int(value) if isinstance(value, str) and value.isdecimal() else value),
    WithJsonSchema({"x-kubernetes-int-or-string": True, "maxLength": 8}),
    Rule(
        cel=f"string(self).matches('^({_COUNT})$')",
        message="not a number of pods: write a number such as 1, or a share such as 25%",
        holds=lambda value: re.fullmatch(_COUNT, str(value)) is not None,
    ),
]
"""A number of pods, or a percentage of the replicas."""


def _is_zero(count: Any) -> bool:
    return str(count) in ("0", "0%")


class Rollout(Fields):
    """How pods are replaced."""

    strategy: Literal["RollingUpdate", "Recreate"] = "RollingUpdate"
    """RollingUpdate starts new pods first; Recreate stops the old ones first and needs no spare GPU."""

    max_surge: PodCount = 1
    """Pods above the wanted number during a rollout: a number, or a share such as 25%."""

    max_unavailable: PodCount = 0
    """Pods below the wanted number during a rollout: a number, or a share such as 25%."""

    drain_seconds: Annotated[int, Field(ge=0, le=86400)] = 180
    """How long running requests may take to finish when a pod goes. An idle pod goes at once."""

    progress_deadline_seconds: Annotated[int, Field(ge=1, le=604800)] | None = None
    """When a rollout counts as stuck; startupSeconds + 600 when unset. Not with parallelism.nodes above 1."""

    rules = (
        Rule(
            # the API server checks the default `{}` of spec.rollout before it fills it, hence `has`
            cel="!(has(self.maxSurge) && string(self.maxSurge) in ['0', '0%']"
            " && has(self.maxUnavailable) && string(self.maxUnavailable) in ['0', '0%'])",
            message="spec.rollout.maxSurge and maxUnavailable are both 0, so that no pod could ever be replaced: "
            "raise one, or write strategy: Recreate",
            field=".maxSurge",
            holds=lambda self: not (_is_zero(self.max_surge) and _is_zero(self.max_unavailable)),
        ),
    )


class Probes(Fields):
    """How long the engine may take."""

    startup_seconds: Annotated[int, Field(ge=1, le=86400)] = 1800
    """How long a pod may take until it serves, downloading included."""


class Scheduling(Fields):
    """Where pods run. The operator adds what the GPUs need."""

    node_selector: StringMap = Field(default_factory=dict)
    """Labels that a node must have."""

    tolerations: Annotated[list[Opaque], Field(max_length=64)] = Field(default_factory=list)
    """Taints that pods put up with. That of the GPU resource is tolerated anyway."""

    affinity: Opaque | None = None
    """Affinity of a pod, as it is."""

    topology_spread_constraints: Annotated[list[Opaque], Field(max_length=16)] = Field(default_factory=list)
    """How replicas spread; over nodes where possible when unset."""

    priority_class_name: Annotated[str, Field(max_length=253)] = ""
    """PriorityClass of the pods."""

    runtime_class_name: Annotated[str, Field(max_length=253)] = ""
    """RuntimeClass of the pods."""

    scheduler_name: Annotated[str, Field(max_length=253)] = ""
    """Scheduler of the pods."""
