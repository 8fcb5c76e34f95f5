"""Adapters in one rank's share of a model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from quire_engine.core.adapters import StoredAdapter, StoredTensor
from quire_engine.layers.adapter import Adaptable, Change
from quire_engine.layers.linear import Linear
from quire_engine.lora.targets import adaptable_linears, module_in_file, module_of, naming_for, tensor_in_file
from quire_engine.models.naming import Naming

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""That an adapter may be stored in, as safetensors writes them."""


class AdaptedModel:
    """Gives a model's linears the changes of adapters, and takes them away again."""

    def __init__(self, model: nn.Module, naming: Naming, dtype: torch.dtype, device: torch.device) -> None:
        """`model` has its weights in their final form. `dtype` is that of hidden states."""
        self._naming, self._dtype, self._device = naming, dtype, device
        self._linears: list[tuple[list[str], Linear, Adaptable]] = []
        self._prepared: dict[int, list[tuple[Adaptable, list[Change]]]] = {}
        for path, layer in adaptable_linears(model):
            layer.method = method = Adaptable(layer.method)
            self._linears.append((layer.names(path), layer, method))

    def prepare_adapter(self, number: int, adapter: StoredAdapter) -> None:
        """Make this rank's part of an adapter that fits the model, under a number that is new. Steps may go on."""
        tensors = {name: _tensor(adapter.content, stored) for name, stored in adapter.tensors.items()}
        naming = naming_for(self._naming, (module_in_file(name)[0] for name in tensors))
        prepared: list[tuple[Adaptable, list[Change]]] = []
        for names, layer, method in self._linears:
            changes = self._changes(layer, names, naming, tensors, adapter.scales)
            if changes:
                prepared.append((method, changes))
        self._prepared[number] = prepared

    def adopt_adapter(self, number: int) -> None:
        """Have what was prepared take part in steps."""
        for method, changes in self._prepared.pop(number):
            method.changes[number] = changes

    def unload_adapter(self, number: int) -> None:
        """Let go of an adapter, wherever it is."""
        self._prepared.pop(number, None)
        for _, _, method in self._linears:
            method.changes.pop(number, None)

    def num_bytes(self, max_rank: int, num_adapters: int, num_tokens: int) -> int:
        """What so many adapters of the largest rank take, and the results of a step of `num_tokens` beside them.

        One more is counted, which is prepared while that whose place it takes still is there.
        """
        sizes = [(layer.in_features, layer.out_features, len(layer.pieces)) for _, layer, _ in self._linears]
        kept = sum(max_rank * (count * inputs + outputs) for inputs, outputs, count in sizes)
        widest = max((inputs + outputs + max_rank for inputs, outputs, _ in sizes), default=0)
        size: int = ((num_adapters + 1) * kept + num_tokens * widest) * self._dtype.itemsize
        return size

    def _changes(
        self,
        layer: Linear,
        names: list[str],
        naming: Naming,
        tensors: Mapping[str, torch.Tensor],
        scales: Mapping[str, float],
    ) -> list[Change]:
        """This rank's part of what an adapter has for `layer`. Pieces that are one module in the file share its A."""
        changes: list[Change] = []
        last = None
        for piece, name in zip(layer.pieces, names, strict=True):
            module = module_of(naming, name)
            if module.name not in scales:
                continue
            rows = tensors[tensor_in_file(module.name, "lora_B")]
            rows = rows if module.rows is None else rows[module.rows]
            up = self._own(rows[piece.rows].float() * scales[module.name])
            before = changes[-1] if changes else None
            if before is not None and last == module.name and before.place.stop == piece.place.start:
                place = slice(before.place.start, piece.place.stop)
                changes[-1] = Change(place, before.down, torch.cat((before.up, up)))
                continue
            down = self._own(tensors[tensor_in_file(module.name, "lora_A")][:, piece.columns])
            changes.append(Change(piece.place, down, up))
            last = module.name
        return changes

    def _own(self, part: torch.Tensor) -> torch.Tensor:
        """A copy that does not keep the whole file in memory."""
        return part.to(self._device, self._dtype, copy=True).contiguous()


def _tensor(content: bytearray, stored: StoredTensor) -> torch.Tensor:
    """A matrix where it lies in a file's content, without a copy."""
    rows, columns = stored.shape
    dtype = DTYPES[stored.dtype]
    return torch.frombuffer(content, dtype=dtype, count=rows * columns, offset=stored.start).view(rows, columns)
