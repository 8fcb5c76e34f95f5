"""How pipeline stages share a model's layers, and what each of them holds."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from quire_engine.memory_plan.adapter_sizes import AdapterSizes
from quire_engine.memory_plan.architectures import tower_tensors, unused_tensors
from quire_engine.memory_plan.model_shape import ModelShape
from quire_engine.memory_plan.quantization import Quantization
from quire_engine.memory_plan.safetensors_header import TensorHeader
from quire_engine.memory_plan.weight_sizes import LAYER, WeightSizes

# Facts of a model are to fit into a termination message: a letter for each layer, and some 300 characters a kind.
KINDS = "abcdef"
_MOST_LAYERS = 256

# What comes after the layers: the output head, the norm before it, and a projection between them.
_LAST = re.compile(r"(?:^|\.)(?:lm_head|embed_out|norm|norm_f|ln_f|final_layer_?norm|project_out)\.\w+$")
_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|embed_in|word_embeddings|wte)\.weight$")


@dataclass(frozen=True)
class Stage:
    """A run of the model's layers. Stage 0 embeds; the last one has the output head."""

    index: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        return self.index == 0

    @property
    def last(self) -> bool:
        return self.index == self.count - 1

    def layers(self, num_layers: int) -> range:
        """The numbers of its layers: equal parts, and of what is left over one layer more on the earlier stages."""
        each, more = divmod(num_layers, self.count)
        start = self.index * each + min(self.index, more)
        return range(start, start + each + (self.index < more))

    def shape(self, shape: ModelShape, num_layers: int) -> ModelShape:
        """That of its `num_layers` layers, of a model of `shape`. Images are encoded where tokens are embedded."""
        shape = replace(shape, num_layers=num_layers)
        return shape if self.first else replace(shape, image_tokens=0, image_elements=0, image_pixels=0)


@dataclass(frozen=True, kw_only=True)
class LayerSizes:
    """Of one layer."""

    weights: WeightSizes
    adapters: AdapterSizes | None  # None where no adapter changes such a layer, or it is not known how


@dataclass(frozen=True, kw_only=True)
class StageSizes:
    """What a model's parts take, from which follows what each stage takes, however many there are."""

    first: WeightSizes  # beside layers: the embedding, and what encodes images
    last: WeightSizes  # beside layers: the norm and the output head, which may be the embedding once more
    kinds: tuple[LayerSizes, ...]  # layers that differ in any tensor's name or shape are of different kinds
    order: str  # the kind of each layer: "a" is the first of `kinds`

    @staticmethod
    def of(
        tensors: Mapping[str, TensorHeader], shape: ModelShape, quantization: Quantization | None = None
    ) -> StageSizes | None:
        """From a checkpoint's tensors by name; None where layers are too many, of too many kinds, or not all there."""
        tower, unused = tower_tensors(shape.architecture), unused_tensors(shape.architecture)
        first: dict[str, TensorHeader] = {}
        last: dict[str, TensorHeader] = {}
        layers: list[dict[str, TensorHeader]] = [{} for _ in range(min(shape.num_layers, _MOST_LAYERS + 1))]
        for name, tensor in tensors.items():
            if name.startswith(unused):
                continue
            if name.startswith(tower):
                first[name] = tensor
                continue
            found = LAYER.search(name)
            if found is not None:
                if int(found[1]) < len(layers):
                    layers[int(found[1])][name] = tensor
                continue
            (last if _LAST.search(name) else first)[name] = tensor
            if shape.tied_embeddings and _EMBEDDING.search(name):
                last[name] = tensor
        if len(layers) > _MOST_LAYERS or not all(layers):
            return None
        alike: dict[frozenset[tuple[object, ...]], dict[str, TensorHeader]] = {}  # one layer of each kind
        order = ""
        for number, layer in enumerate(layers):
            kind = frozenset(
                (name.replace(f".{number}.", ".", 1), tensor.dtype, tensor.shape) for name, tensor in layer.items()
            )
            alike.setdefault(kind, layer)
            if len(alike) > len(KINDS):
                return None
            order += KINDS[list(alike).index(kind)]
        return StageSizes(
            first=WeightSizes.of(first, shape, quantization),
            last=WeightSizes.of(last, shape, quantization),
            kinds=tuple(
                LayerSizes(weights=WeightSizes.of(layer, shape, quantization), adapters=AdapterSizes.of(layer, shape))
                for layer in alike.values()
            ),
            order=order,
        )

    def weights(self, stage: Stage, layers: range) -> WeightSizes:
        """What a stage of these layers holds."""
        parts = [(kind.weights, count) for kind, count in self._counted(layers)]
        ends = [(self.first, int(stage.first)), (self.last, int(stage.last))]
        return _sum([*parts, *ends])

    def adapters(self, layers: range) -> AdapterSizes | None:
        """Of the adapters of a stage of these layers; None where no adapter changes them."""
        parts = [(kind.adapters, count) for kind, count in self._counted(layers) if kind.adapters is not None]
        if not parts:
            return None
        return AdapterSizes(
            split=sum(part.split * count for part, count in parts),
            kv=sum(part.kv * count for part, count in parts),
            whole=sum(part.whole * count for part, count in parts),
            widest_up=max(part.widest_up for part, _ in parts),
            widest_down=max(part.widest_down for part, _ in parts),
        )

    def _counted(self, layers: range) -> list[tuple[LayerSizes, int]]:
        counts = Counter(self.order[layers.start : layers.stop])
        return [(self.kinds[KINDS.index(kind)], count) for kind, count in counts.items()]


def _sum(parts: Iterable[tuple[WeightSizes, int]]) -> WeightSizes:
    """Of so many of each."""
    total: Counter[str] = Counter({field.name: 0 for field in dataclasses.fields(WeightSizes)})
    for part, count in parts:
        total.update({name: count * size for name, size in dataclasses.asdict(part).items()})
    return WeightSizes(**total)
