"""How much memory a device has: what the spec says, else what nodes report, else a table of products."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from quire_operator.api import Spec
from quire_operator.api.quantity import parse_quantity

MEMORY_LABEL = "nvidia.com/gpu.memory"
"""MiB of one GPU, put on nodes by NVIDIA's GPU feature discovery."""

PRODUCT_LABEL = "nvidia.com/gpu.product"

WHOLE_GPU = "nvidia.com/gpu"
"""The resource that the table of products is of. Others are slices, or another vendor's."""

GIB = 1 << 30
_MIB = 1 << 20

PRODUCTS: Mapping[str, int] = {
    "Tesla-T4": 15360,
    "Tesla-V100-PCIE-16GB": 16384,
    "Tesla-V100-PCIE-32GB": 32768,
    "Tesla-V100-SXM2-16GB": 16384,
    "Tesla-V100-SXM2-32GB": 32768,
    "NVIDIA-A2": 15356,
    "NVIDIA-A10": 23028,
    "NVIDIA-A10G": 23028,
    "NVIDIA-A16": 15356,
    "NVIDIA-A30": 24576,
    "NVIDIA-A40": 46068,
    "NVIDIA-A100-PCIE-40GB": 40960,
    "NVIDIA-A100-SXM4-40GB": 40960,
    "NVIDIA-A100-80GB-PCIe": 81920,
    "NVIDIA-A100-SXM4-80GB": 81920,
    "NVIDIA-L4": 23034,
    "NVIDIA-L40": 46068,
    "NVIDIA-L40S": 46068,
    "NVIDIA-H100-PCIe": 81559,
    "NVIDIA-H100-80GB-HBM3": 81559,
    "NVIDIA-H100-NVL": 95830,
    "NVIDIA-H200": 143771,
    "NVIDIA-H200-NVL": 143771,
    "NVIDIA-GH200-480GB": 97871,
    "NVIDIA-B200": 183359,
    "NVIDIA-RTX-A4000": 16376,
    "NVIDIA-RTX-A5000": 24564,
    "NVIDIA-RTX-A6000": 49140,
    "NVIDIA-RTX-6000-Ada-Generation": 49140,
    "NVIDIA-GeForce-RTX-3090": 24576,
    "NVIDIA-GeForce-RTX-4090": 24564,
    "NVIDIA-GeForce-RTX-5090": 32607,
}
"""MiB of one GPU of each product, as the driver reports them. Products are named as in the label."""


@dataclass(frozen=True)
class Device:
    """What one rank computes on."""

    name: str
    memory: int
    """Bytes: of one GPU, or of the pod on the CPU."""

    on_gpu: bool

    a_node: int | None = None
    """GPUs of the nodes that have most of them; None where none of them says."""


@dataclass(frozen=True)
class Skipped:
    """Why there is no plan. It never keeps a service from being served."""

    reason: str
    message: str


@dataclass(frozen=True)
class KnownGPUs:
    """What is known about GPUs apart from the spec."""

    node_labels: Sequence[Mapping[str, str]] = ()
    """Labels of each node that bears `nvidia.com/gpu.memory`."""

    products: Mapping[str, int] = field(default_factory=dict)
    """MiB of products beside the table's, which win over it."""


def device_of(spec: Spec, known: KnownGPUs) -> Device | Skipped:
    """The device of a service's pods, or why it is not known."""
    gpu, a_node = spec.resources.gpu, max(_counts(spec, known.node_labels), default=None)
    if spec.gpus_per_pod == 0:
        return Device("CPU", int(parse_quantity(spec.resources.memory)), on_gpu=False)
    if gpu.memory_gib is not None:
        return Device(gpu.product or "GPU", gpu.memory_gib * GIB, on_gpu=True, a_node=a_node)
    reported = dict(sorted(_reported(spec, known.node_labels)))
    if len(reported) > 1:
        sizes = " and ".join(f"{mebibytes / 1024:.1f} GiB ({product})" for mebibytes, product in reported.items())
        return Skipped(
            "SeveralGPUs",
            f"nodes that fit the spec have GPUs of {sizes}: name one product in spec.resources.gpu.product, "
            "or write spec.resources.gpu.memoryGiB",
        )
    for mebibytes, product in reported.items():
        return Device(product, mebibytes * _MIB, on_gpu=True, a_node=a_node)
    if _without_sharing(gpu.resource_name) != WHOLE_GPU:
        return Skipped(
            "UnknownGPU",
            f"no node reports the memory of one {gpu.resource_name}: write spec.resources.gpu.memoryGiB",
        )
    if gpu.product is None:
        return Skipped(
            "UnknownGPU",
            "the spec names no GPU and no node reports one: write spec.resources.gpu.product or .memoryGiB",
        )
    found = {**PRODUCTS, **known.products}.get(gpu.product)
    if found is None:
        return Skipped(
            "UnknownGPU",
            f"the memory of {gpu.product} is not known: write spec.resources.gpu.memoryGiB, "
            f"or start the operator with --gpu-product {gpu.product}=MIB",
        )
    return Device(gpu.product, found * _MIB, on_gpu=True, a_node=a_node)


def _reported(spec: Spec, nodes: Iterable[Mapping[str, str]]) -> Iterable[tuple[int, str]]:
    """Memory and product of the GPUs of those nodes that pods may run on."""
    resource = _without_sharing(spec.resources.gpu.resource_name)
    for labels in _admitted(spec, nodes):
        text = labels.get(f"{resource}.memory", "")
        if text.isdecimal() and int(text) > 0:
            yield int(text), labels.get(f"{resource}.product") or labels.get(PRODUCT_LABEL, "GPU")


def _counts(spec: Spec, nodes: Iterable[Mapping[str, str]]) -> Iterable[int]:
    """How many whole GPUs those nodes have: slices and shares of time are more than they are."""
    texts = (labels.get(f"{WHOLE_GPU}.count", "") for labels in _admitted(spec, nodes))
    whole = spec.resources.gpu.resource_name == WHOLE_GPU
    return (int(text) for text in texts if whole and text.isdecimal() and int(text) > 0)


def _admitted(spec: Spec, nodes: Iterable[Mapping[str, str]]) -> Iterable[Mapping[str, str]]:
    """Labels of the nodes that pods may run on, where they are of NVIDIA's resources."""
    wanted = dict(spec.scheduling.node_selector)
    if spec.resources.gpu.product is not None:
        wanted[PRODUCT_LABEL] = spec.resources.gpu.product
    if spec.resources.gpu.resource_name.startswith("nvidia.com/"):
        yield from (labels for labels in nodes if wanted.items() <= labels.items())


def _without_sharing(resource: str) -> str:
    """The resource whose labels tell of this one: with time slicing a share has the memory of the whole."""
    return resource.removesuffix(".shared")


def parse_product(text: str) -> tuple[str, int]:
    """Read `NAME=MIB`. Raises ValueError."""
    name, _, mebibytes = text.rpartition("=")
    if not name or not mebibytes.isdecimal() or int(mebibytes) == 0:
        raise ValueError(f"{text!r} is no GPU product: write NAME=MIB, such as NVIDIA-L4=23034")
    return name, int(mebibytes)
