"""What a plan needs to know about a model, taken from its config.json and the headers of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quire_engine.memory_plan.context_length import longest_context
from quire_engine.memory_plan.model_shape import ModelShape
from quire_engine.memory_plan.safetensors_header import TensorHeader
from quire_engine.memory_plan.weight_sizes import WeightSizes


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """A model as it is on the hub or on disk; a few numbers, however large the model."""

    shape: ModelShape
    weights: WeightSizes
    longest: int
    """Tokens that its positions cover."""

    quantization: str | None
    """The scheme that the checkpoint is quantized by."""

    commit: str | None = None
    """Commit of the hub's repository."""

    @staticmethod
    def of(config: Mapping[str, object], tensors: Mapping[str, TensorHeader], commit: str | None = None) -> ModelFacts:
        """From config.json's content and the tensors by name. Raises ValueError for a model that is not known."""
        shape = ModelShape.of_known_architecture(config)
        quantization = config.get("quantization_config")
        return ModelFacts(
            shape=shape,
            weights=WeightSizes.of(tensors, shape),
            longest=longest_context(config, shape.max_position_embeddings),
            quantization=str(quantization.get("quant_method")) if isinstance(quantization, dict) else None,
            commit=commit,
        )

    @property
    def parameters(self) -> int | None:
        """Number of parameters; None when the weights are quantized, since those are packed."""
        return self.weights.elements if self.weights.stored == 0 else None
