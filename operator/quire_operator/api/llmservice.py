"""The LLMService: one model, served."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field

from quire_operator.api.autoscaling import Autoscaling
from quire_operator.api.cache import Cache
from quire_operator.api.engine import Engine
from quire_operator.api.exposure import Monitoring, Security, Service
from quire_operator.api.fields import Fields
from quire_operator.api.model import Model
from quire_operator.api.pod_template import PodTemplate
from quire_operator.api.resources import Parallelism, Resources
from quire_operator.api.rollout import Probes, Rollout, Scheduling
from quire_operator.api.rule import Rule
from quire_operator.api.status import Status

GROUP = "serving.quire.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "LLMService"
PLURAL = "llmservices"

LONGEST_NAME = 50
"""Children are named NAME-SUFFIX within the 63 characters of a label and a DNS name."""

LONGEST_GROUP_NAME = 40
"""Pods of a group are labelled NAME-nodes-GROUP-REVISION, within the same 63."""

_NAME = r"[a-z]([-a-z0-9]*[a-z0-9])?"


def _gpus_match(spec: Spec) -> bool:
    ranks, count = spec.parallelism.tensor * spec.parallelism.pipeline, spec.resources.gpu.count
    if count is None:
        return ranks % spec.parallelism.nodes == 0
    return count == 0 or ranks == count * spec.parallelism.nodes


class Spec(Fields):
    """What is wanted."""

    model: Model
    """The model that is served."""

    engine: Engine = Field(default_factory=Engine)
    """The program that serves it."""

    parallelism: Parallelism = Field(default_factory=Parallelism)
    """How one replica is spread over GPUs and nodes."""

    resources: Resources = Field(default_factory=Resources)
    """What each pod takes."""

    replicas: Annotated[int, Field(ge=0, le=1000)] | None = None
    """A fixed number of replicas. With neither this nor autoscaling: 1 at creation, and later what was scaled to."""

    autoscaling: Autoscaling | None = None
    """Replicas by load, instead of a fixed number."""

    cache: Cache | None = None
    """Where weights from the hub are kept; each pod downloads its own when unset."""

    rollout: Rollout = Field(default_factory=Rollout)
    """How pods are replaced."""

    probes: Probes = Field(default_factory=Probes)
    """How long the engine may take to start."""

    scheduling: Scheduling = Field(default_factory=Scheduling)
    """Where pods run."""

    service: Service = Field(default_factory=Service)
    """The Service that clients reach."""

    security: Security = Field(default_factory=Security)
    """Who may use the model."""

    monitoring: Monitoring = Field(default_factory=Monitoring)
    """What the Prometheus operator is told."""

    plan: Literal["enforce", "warn", "off"] = "enforce"
    """Whether a model that cannot fit its GPUs is refused, warned of, or tried."""

    pod_template: PodTemplate = Field(default_factory=dict)
    """A partial PodTemplateSpec, merged over the operator's own: lists by name. Its container is `engine`."""

    suspend: bool = False
    """Remove the pods and what routes to them; claims stay."""

    rules = (
        Rule(
            cel="!(has(self.replicas) && has(self.autoscaling))",
            message="spec.replicas and spec.autoscaling are both set: keep one. What autoscaling scales is bounded by "
            "its minReplicas and maxReplicas, not by `kubectl scale`, after which replicas: null clears the number",
            field=".replicas",
            holds=lambda self: self.replicas is None or self.autoscaling is None,
        ),
        Rule(
            cel="has(self.resources.gpu.count)"
            " ? (self.resources.gpu.count == 0"
            " || self.parallelism.tensor * self.parallelism.pipeline"
            " == self.resources.gpu.count * self.parallelism.nodes)"
            " : self.parallelism.tensor * self.parallelism.pipeline % self.parallelism.nodes == 0",
            message="spec.parallelism.tensor x pipeline must equal spec.resources.gpu.count x spec.parallelism.nodes: "
            "change one of them, or leave spec.resources.gpu.count out to have it computed",
            field=".parallelism",
            holds=_gpus_match,
        ),
        Rule(
            cel="!has(self.cache) || !self.model.source.startsWith('pvc://')"
            " || (has(self.model.adapters) && self.model.adapters.exists(a, a.source.startsWith('hf://')))",
            message="spec.cache keeps downloads, and a pvc:// source has none: leave spec.cache out",
            field=".cache",
            holds=lambda self: (
                self.cache is None
                or not self.model.source.startswith("pvc://")
                or any(adapter.source.startswith("hf://") for adapter in self.model.adapters)
            ),
        ),
        Rule(
            cel="!has(self.model.revision) || self.model.source.startsWith('hf://')",
            message="spec.model.revision belongs to an hf:// source: leave it out",
            field=".model.revision",
            holds=lambda self: self.model.revision is None or self.model.source.startswith("hf://"),
        ),
    )

    @property
    def gpus_per_pod(self) -> int:
        """GPUs that each pod asks for; 0 on CPU."""
        if self.resources.gpu.count is not None:
            return self.resources.gpu.count
        return self.parallelism.tensor * self.parallelism.pipeline // self.parallelism.nodes


class Metadata(Fields):
    """What the operator reads of an object's metadata."""

    name: str
    """Its name."""

    namespace: str = "default"
    """Where it lives."""

    uid: str = ""
    """Its identity; a new object of the same name has another. Empty in a file."""

    generation: int | None = None
    """Counts the changes of the spec."""

    labels: dict[str, str] = Field(default_factory=dict)
    """Its labels."""

    annotations: dict[str, str] = Field(default_factory=dict)
    """Its annotations."""


class LLMService(Fields):
    """One model, served behind one URL."""

    api_version: Literal["serving.quire.dev/v1alpha1"] = "serving.quire.dev/v1alpha1"
    kind: Literal["LLMService"] = "LLMService"
    metadata: Metadata
    spec: Spec
    """What is wanted."""

    status: Status = Field(default_factory=Status)
    """What the operator has seen."""

    rules = (
        Rule(
            cel=f"self.metadata.name.matches('^{_NAME}$')",
            message="metadata.name names a Service, so it must be lower-case letters, digits and '-', "
            "with a letter first and no '.': rename it",
            holds=lambda self: re.fullmatch(_NAME, self.metadata.name) is not None,
        ),
        Rule(
            cel=f"self.metadata.name.size() <= {LONGEST_NAME}",
            message=f"metadata.name is longer than {LONGEST_NAME} characters, and the names made from it "
            "would not fit into 63: shorten it",
            holds=lambda self: len(self.metadata.name) <= LONGEST_NAME,
        ),
        Rule(
            cel=f"self.metadata.name.size() <= {LONGEST_GROUP_NAME} || !has(self.spec.parallelism)"
            " || !has(self.spec.parallelism.nodes) || self.spec.parallelism.nodes == 1",
            message=f"with spec.parallelism.nodes above 1, metadata.name may have {LONGEST_GROUP_NAME} characters, as "
            "pods are labelled with longer names made from it: shorten it",
            holds=lambda self: len(self.metadata.name) <= LONGEST_GROUP_NAME or self.spec.parallelism.nodes == 1,
        ),
    )

    @property
    def served_name(self) -> str:
        """Name that requests ask for."""
        return self.spec.model.name or self.metadata.name
