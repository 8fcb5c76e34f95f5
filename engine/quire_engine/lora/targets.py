"""The linears that an adapter may change, and what peft calls them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from quire_engine.layers.linear import Linear
from quire_engine.models.decoder import CausalLM, DecoderSpec
from quire_engine.models.naming import Naming, Source

_LAYERS = "model.layers."
_PREFIX, _WEIGHT = "base_model.model.", ".weight"


@dataclass(frozen=True)
class Target:
    """A module of transformers' model, of which one or several of ours are made. Sizes are the whole model's."""

    in_features: int
    out_features: int


def adaptable_linears(model: nn.Module) -> Iterator[tuple[str, Linear]]:
    """Those of the layers that see every token, by path. The experts of a mixture see some tokens only."""
    for path, module in model.named_modules():
        if path.startswith(_LAYERS) and isinstance(module, Linear) and module.takes_batch:
            yield path, module


def linears_of(spec: DecoderSpec) -> list[tuple[str, tuple[int, int]]]:
    """The checkpoint's parts of all adaptable linears, by our names, with the shapes of their weights."""
    with torch.device("meta"):
        model = CausalLM(spec)
    return [
        (name, piece.whole)
        for path, layer in adaptable_linears(model)
        for piece, name in zip(layer.pieces, layer.names(path), strict=True)
    ]


def adapter_targets(linears: Iterable[tuple[str, tuple[int, int]]], naming: Naming) -> dict[str, Target]:
    """By the names of transformers' modules, such as model.layers.0.self_attn.q_proj."""
    targets: dict[str, Target] = {}
    for name, (rows, columns) in linears:
        source = module_of(naming, name)
        if source.matrix is not None:
            continue
        end = rows if source.rows is None else int(source.rows.max()) + 1
        before = targets.get(source.name)
        targets[source.name] = Target(columns, max(end, before.out_features if before else 0))
    return targets


def module_of(naming: Naming, name: str) -> Source:
    """The module of transformers' that is, or has the rows of, the linear that is `name` here."""
    source = naming.source(f"{name}{_WEIGHT}")
    return Source(source.name.removesuffix(_WEIGHT), source.rows, source.transposed, source.matrix)


def naming_for(naming: Naming, modules: Iterable[str]) -> Naming:
    """The names as an adapter has them that is made for `modules`: some models' modules have several."""
    return naming.of(f"{module}{_WEIGHT}" for module in modules)


def module_in_file(tensor: str) -> tuple[str, str]:
    """Of base_model.model.NAME.lora_A.weight the NAME and the rest, which is "" for names of another form."""
    if not tensor.startswith(_PREFIX):
        return tensor, ""
    module, found, rest = tensor.removeprefix(_PREFIX).rpartition(".lora_")
    return (module, f"lora_{rest}") if found else (tensor, "")


def tensor_in_file(module: str, half: str) -> str:
    """What peft calls `half`, "lora_A" or "lora_B", of a module."""
    return f"{_PREFIX}{module}.{half}{_WEIGHT}"
