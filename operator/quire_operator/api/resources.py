"""`spec.resources` and `spec.parallelism`: what each pod takes, and how the model is spread over it."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

from pydantic import Field

from quire_operator.api.fields import Fields
from quire_operator.api.quantity import Quantity, parse_quantity
from quire_operator.api.rule import Rule


class Parallelism(Fields):
    """How one replica is spread over GPUs and nodes."""

    tensor: Annotated[int, Field(ge=1, le=64)] = 1
    """Ranks that share each layer: GPUs, or processes where gpu.count is 0."""

    pipeline: Annotated[int, Field(ge=1, le=64)] = 1
    """Groups of such ranks, which share the layers among them."""

    nodes: Annotated[int, Field(ge=1, le=64)] = 1
    """Pods that make up one replica, by LeaderWorkerSet, for types quire, vllm and custom."""

    exclusive_topology: Annotated[str, Field(min_length=1, max_length=317)] | None = None
    """With nodes above 1, a label of nodes such as that of a rack: groups of pods never share one of its values."""

    rules = (
        Rule(
            # the API server checks the default `{}` of spec.parallelism before it fills it, hence `has`
            cel="!has(self.exclusiveTopology) || has(self.nodes) && self.nodes > 1",
            message="spec.parallelism.exclusiveTopology keeps groups of pods apart, and with nodes 1 there are none: "
            "raise nodes, or leave it out",
            field=".exclusiveTopology",
            holds=lambda self: self.exclusive_topology is None or self.nodes > 1,
        ),
    )


class GPU(Fields):
    """The GPUs of one pod."""

    resource_name: Annotated[str, Field(min_length=1, max_length=253)] = "nvidia.com/gpu"
    """Extended resource that a device plugin offers."""

    count: Annotated[int, Field(ge=0, le=64)] | None = None
    """GPUs in each pod; tensor x pipeline / nodes when unset. 0 serves on the CPU."""

    product: Annotated[str, Field(min_length=1, max_length=63)] | None = None
    """Nodes whose label nvidia.com/gpu.product says this, such as NVIDIA-H100-80GB-HBM3."""

    memory_gib: Annotated[int, Field(ge=1, le=4096)] | None = Field(default=None, alias="memoryGiB")
    """Memory of one GPU, where the plan cannot know it from nodes or the product."""

    rules = (
        Rule(
            cel="!has(self.product) || self.resourceName.startsWith('nvidia.com/')",
            message="spec.resources.gpu.product selects nodes by a label of NVIDIA's GPU feature discovery: "
            "with another resourceName, name the nodes in spec.scheduling.nodeSelector",
            field=".product",
            holds=lambda self: self.product is None or self.resource_name.startswith("nvidia.com/"),
        ),
    )


class Resources(Fields):
    """What each pod takes."""

    gpu: GPU = Field(default_factory=GPU)
    """GPUs; one when nothing is set."""

    cpu: Quantity = "8"
    """Requested CPU, such as 8 or 500m. The engine's threads follow it, unless cpuLimit is set."""

    cpu_limit: Quantity | None = None
    """Limit on CPU, such as 8 or 500m; none when unset."""

    memory: Quantity = "32Gi"
    """Memory, such as 32Gi: requested and limited, shared memory included."""

    shared_memory: Quantity | None = None
    """Size of /dev/shm, such as 2Gi; a quarter of memory, and at most 8Gi, when unset."""

    rules = (
        Rule(
            cel="!has(self.sharedMemory) || !isQuantity(string(self.sharedMemory)) || !isQuantity(string(self.memory))"
            " || quantity(string(self.sharedMemory)).isLessThan(quantity(string(self.memory)))",
            message="spec.resources.sharedMemory is part of spec.resources.memory: "
            "write less than memory, or leave it out for a quarter of it",
            field=".sharedMemory",
            holds=lambda self: (
                self.shared_memory is None or parse_quantity(self.shared_memory) < parse_quantity(self.memory)
            ),
        ),
        Rule(
            cel="!has(self.cpuLimit) || !isQuantity(string(self.cpuLimit)) || !isQuantity(string(self.cpu))"
            " || !quantity(string(self.cpuLimit)).isLessThan(quantity(string(self.cpu)))",
            message="spec.resources.cpuLimit is below spec.resources.cpu: raise the limit or lower the request",
            field=".cpuLimit",
            holds=lambda self: self.cpu_limit is None or parse_quantity(self.cpu_limit) >= parse_quantity(self.cpu),
        ),
    )

    @property
    def shared_memory_or_default(self) -> str:
        """Size of /dev/shm as a quantity."""
        if self.shared_memory is not None:
            return self.shared_memory
        mebibytes = min(parse_quantity(self.memory) / 4, Decimal(8 * 2**30)) / 2**20
        return f"{max(1, int(mebibytes))}Mi"
