"""What a checkpoint calls the tensors of a model. Here they have Llama's names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch

from quire_engine.memory_plan.model_shape import ModelShape
from quire_engine.memory_plan.weight_sizes import COMPUTED


@dataclass(frozen=True)
class Source:
    """Where in a checkpoint a tensor [rows, columns] of the model is found."""

    name: str
    rows: torch.Tensor | None = None  # [rows] int64: which of the stored rows, where several tensors are stored as one
    transposed: bool = False  # stored as [columns, rows]; `rows` are counted after turning it
    matrix: tuple[int, int] | None = None  # which one, of how many, where several are stored in three dimensions


@dataclass(frozen=True)
class Naming:
    """A family's names: `source` of each of the model's tensors, and endings of those that nobody needs."""

    source: Callable[[str], Source] = Source
    unused: tuple[str, ...] = COMPUTED
    unused_prefixes: tuple[str, ...] = ()
    unused_zeros: tuple[str, ...] = ()  # endings of those that nobody needs as long as all their elements are 0
    otherwise: Mapping[str, str] = field(default_factory=dict)
    """How the sources' names may begin instead, by how they begin, in checkpoints where none begins like that.

    What stands instead may be in there too.
    """

    other_endings: Mapping[str, str] = field(default_factory=dict)
    """How the sources' names may end instead, by how they end, in checkpoints where any ends like that."""

    def of(self, stored: Iterable[str]) -> Naming:
        """The names that a checkpoint uses whose tensors are called `stored`."""
        names = list(stored)
        absent = {a for a in self.otherwise if not any(name.startswith(a) for name in names)}
        prefixes = {}
        for prefix in absent:
            other = self.otherwise[prefix]
            while other in absent:
                other = self.otherwise[other]
            prefixes[prefix] = other
        endings = {a: b for a, b in self.other_endings.items() if any(name.endswith(b) for name in names)}
        if not prefixes and not endings:
            return self

        def source(ours: str) -> Source:
            usual = self.source(ours)
            name = usual.name
            prefix = max((p for p in prefixes if name.startswith(p)), key=len, default=None)
            if prefix is not None:
                name = prefixes[prefix] + name.removeprefix(prefix)
            ending = next((a for a in endings if name.endswith(a)), None)
            if ending is not None:
                name = name.removesuffix(ending) + endings[ending]
            return replace(usual, name=name)

        return replace(self, source=source)


LLAMA_NAMES = Naming()

_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


def renamed(
    modules: Mapping[str, str],
    *,
    layers: str = "model.layers.",
    fused: Mapping[str, tuple[str, torch.Tensor]] | None = None,
    transposed: tuple[str, ...] = (),
    otherwise: Mapping[str, str] | None = None,
) -> Naming:
    """Names of a checkpoint with `modules` called otherwise, those of layers without what stands before them.

    `fused` gives modules that are rows of another one, `transposed` those, by our names, whose weights are turned.
    """
    parts = fused or {}

    def source(name: str) -> Source:
        found = _LAYER.fullmatch(name)
        prefix, own = (f"{layers}{found[1]}.", found[2]) if found else ("", name)
        module, _, tensor = own.rpartition(".")
        turned = module in transposed and tensor == "weight"
        if module in parts:
            theirs, rows = parts[module]
            return Source(f"{prefix}{theirs}.{tensor}", rows, turned)
        return Source(f"{prefix}{modules.get(module, module)}.{tensor}", transposed=turned)

    return Naming(source, otherwise=otherwise or {})


def stacked(name: str, **parts: int) -> dict[str, tuple[str, torch.Tensor]]:
    """Modules, by their last name, whose rows follow each other in the module `name`: `fused` of `renamed`."""
    result, start = {}, 0
    for part, size in parts.items():
        result[part] = (name, torch.arange(start, start + size))
        start += size
    return result


def stacked_heads(name: str, shape: ModelShape) -> dict[str, tuple[str, torch.Tensor]]:
    """Queries, then keys, then values, in the module `name`."""
    q, kv = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    return {f"self_attn.{k}": v for k, v in stacked(name, q_proj=q, k_proj=kv, v_proj=kv).items()}


def grouped_heads(name: str, shape: ModelShape) -> dict[str, tuple[str, torch.Tensor]]:
    """For each key and value its queries, then itself, in the module `name`."""
    each = shape.num_heads // shape.num_kv_heads
    rows = torch.arange(shape.num_kv_heads * (each + 2) * shape.head_dim)
    rows = rows.view(shape.num_kv_heads, each + 2, shape.head_dim)
    parts = {"q_proj": rows[:, :each], "k_proj": rows[:, each], "v_proj": rows[:, each + 1]}
    return {f"self_attn.{k}": (name, v.flatten()) for k, v in parts.items()}
