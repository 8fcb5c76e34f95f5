"""What a plan needs to know about a model, taken from its config.json and the headers of its weights."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from quire_engine.memory_plan.adapter_sizes import AdapterSizes
from quire_engine.memory_plan.architectures import normalised
from quire_engine.memory_plan.context_length import longest_context
from quire_engine.memory_plan.image_adapter import adapter_headers
from quire_engine.memory_plan.model_shape import BYTES_OF_DTYPE, ModelShape
from quire_engine.memory_plan.quantization import Quantization, quantization_of, unexplained_weight
from quire_engine.memory_plan.safetensors_header import TensorHeader
from quire_engine.memory_plan.stages import KINDS, LayerSizes, StageSizes
from quire_engine.memory_plan.weight_files import checkpoint_headers, with_dtype
from quire_engine.memory_plan.weight_sizes import WeightSizes

_Numbers = TypeVar("_Numbers", ModelShape, WeightSizes, AdapterSizes)
_MOST = 1 << 60
_MAY_BE_0 = ("kv_width", "image_tokens", "image_elements", "image_pixels")
_LONGEST_REASON = 256


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """A model as it is on the hub or on disk; a few numbers, however large the model."""

    shape: ModelShape
    weights: WeightSizes
    longest: int
    """Tokens that its positions cover."""

    quantization: str | None
    """The scheme that the checkpoint is quantized by."""

    unreadable: str | None = None
    """Why this engine cannot read the quantized weights, which another may."""

    adapters: AdapterSizes | None = None
    """What adapters depend on; None where that is not known."""

    stages: StageSizes | None = None
    """What pipeline stages hold; None where that is not known."""

    commit: str | None = None
    """Commit of the hub's repository."""

    @staticmethod
    def of(config: Mapping[str, object], tensors: Mapping[str, TensorHeader], commit: str | None = None) -> ModelFacts:
        """From config.json's content and the tensors by name. Raises ValueError for a model that is not known."""
        read = with_dtype(normalised(config), tensors)
        shape = ModelShape.from_config(read)
        quantization, scheme, unreadable = _quantization(config, tensors)
        return ModelFacts(
            shape=shape,
            weights=WeightSizes.of(tensors, shape, quantization),
            longest=longest_context(read, shape.max_position_embeddings),
            quantization=scheme,
            unreadable=unreadable,
            adapters=AdapterSizes.of(tensors, shape),
            stages=StageSizes.of(tensors, shape, quantization),
            commit=commit,
        )

    @staticmethod
    def of_directory(directory: Path) -> ModelFacts:
        """From the files of a checkpoint. Raises ValueError that says what is wrong with which file."""
        file = directory / "config.json"
        if not file.is_file():
            raise ValueError(f"{directory} has no config.json: name the directory of a checkpoint")
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} does not parse ({error})") from None
        if not isinstance(config, dict):
            raise ValueError(f"{file} holds no JSON object")
        return ModelFacts.of(config, checkpoint_headers(directory) | adapter_headers(directory, config))

    @property
    def parameters(self) -> int | None:
        """Number of parameters; None when the weights are quantized, since those are packed."""
        return self.weights.elements if not self.weights.is_quantized else None

    def to_json(self) -> str:
        """One line of some 1,400 characters, which fits into a container's termination message."""
        values = dataclasses.asdict(self)
        del values["commit"]  # only a hub has one
        return json.dumps(values)

    @staticmethod
    def from_json(text: str) -> ModelFacts:
        """What `to_json` gave. Raises ValueError for anything else, numbers that no model has among it."""
        try:
            read = json.loads(text)
            facts = ModelFacts(
                shape=_checked(ModelShape, read["shape"], least=1),
                weights=_checked(WeightSizes, read["weights"], least=0),
                longest=_whole(read["longest"], least=1),
                quantization=None if read["quantization"] is None else str(read["quantization"])[:64],
                unreadable=None if read.get("unreadable") is None else str(read["unreadable"])[:_LONGEST_REASON],
                adapters=None if read.get("adapters") is None else _checked(AdapterSizes, read["adapters"], least=0),
                stages=None if read.get("stages") is None else _stages(read["stages"], read["shape"]["num_layers"]),
            )
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"these are no facts of a model ({error!r})") from None
        if facts.shape.num_heads % facts.shape.num_kv_heads or facts.shape.dtype not in BYTES_OF_DTYPE:
            raise ValueError("these are facts of no model")
        return facts


def _quantization(
    config: Mapping[str, object], tensors: Mapping[str, TensorHeader]
) -> tuple[Quantization | None, str | None, str | None]:
    """How the weights are quantized, where this engine can read it, what that is called, and why it cannot."""
    try:
        quantization = quantization_of(config)
    except ValueError as error:  # another engine may serve it
        settings = config.get("quantization_config")
        method = settings.get("quant_method") if isinstance(settings, dict) else None
        return None, str(method), str(error)[:_LONGEST_REASON]
    if quantization is not None:
        return quantization, quantization.scheme, None
    # Older tools left config.json alone, and wrote a file of their own beside it.
    if any(name.endswith(".qweight") for name in tensors):
        return None, "gptq" if any(name.endswith(".g_idx") for name in tensors) else "awq", None
    unexplained = unexplained_weight(tensors)
    return None, None, None if unexplained is None else f"it holds {unexplained}"[:_LONGEST_REASON]


def _checked(kind: type[_Numbers], values: Mapping[str, Any], least: int) -> _Numbers:
    for field in dataclasses.fields(kind):
        # Older engines do not say what has a default.
        value = values[field.name] if field.default is dataclasses.MISSING else values.get(field.name, field.default)
        if field.type == "int":
            _whole(value, 0 if field.name in _MAY_BE_0 else least)
        elif type(value).__name__ != field.type:
            raise ValueError(f"{field.name} is {value!r}")
    return kind(**values)


def _stages(values: Mapping[str, Any], num_layers: int) -> StageSizes:
    kinds = tuple(
        LayerSizes(
            weights=_checked(WeightSizes, kind["weights"], least=0),
            adapters=None if kind["adapters"] is None else _checked(AdapterSizes, kind["adapters"], least=0),
        )
        for kind in values["kinds"]
    )
    order = str(values["order"])
    if len(order) != num_layers or not set(order) <= set(KINDS[: len(kinds)]):
        raise ValueError(f"{order[:64]!r} is no order of {num_layers} layers")
    first, last = (_checked(WeightSizes, values[end], least=0) for end in ("first", "last"))
    return StageSizes(first=first, last=last, kinds=kinds, order=order)


def _whole(value: Any, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= _MOST:
        raise ValueError(f"{value!r} is no size")
    return value
