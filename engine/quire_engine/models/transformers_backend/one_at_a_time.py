"""A model of transformers with its own cache: one request at a time, whose prompt is computed whole."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from quire_engine.memory_plan.model_shape import ModelShape
from quire_engine.models.language_model import LanguageModel
from quire_engine.models.transformers_backend.outputs import HiddenStates

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# The argument that caches and recurrent states travel by, newest name first.
_CACHE_ARGUMENTS = ("cache", "past_key_values", "cache_params")
_MEASURED = 16


class OneAtATime(LanguageModel):
    """Keeps the cache of the latest sequence. A batch that begins at position 0 begins a new one."""

    batches = False

    def __init__(self, model: PreTrainedModel, hidden: HiddenStates, shape: ModelShape) -> None:
        """Raises `ValueError` for a model that keeps no cache."""
        super().__init__()
        self.model, self.shape = model, shape
        self._hidden = hidden
        parameters = inspect.signature(model.forward).parameters
        name = next((name for name in _CACHE_ARGUMENTS if name in parameters), None)
        if name is None:
            raise ValueError(f"{type(model).__name__} keeps no cache in transformers: it cannot be served")
        self._argument = name
        self._takes_positions = "position_ids" in parameters
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
        self._generation: Any = model  # the methods that `generate` uses of it
        self._cache: Any = None

    def forward(self, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """[num_tokens] and [num_tokens] int64, of one sequence -> hidden states [num_tokens, hidden_size]."""
        begins = int(positions[0]) == 0
        if begins:
            self._cache = self._new_cache()
        inputs = self._generation.prepare_inputs_for_generation(
            token_ids[None],
            use_cache=True,
            is_first_iteration=begins,
            **{self._argument: self._cache},
            **({"position_ids": positions[None]} if self._takes_positions else {}),
        )
        outputs: list[Any] = []
        hook = self._hidden.base.register_forward_hook(lambda _, __, output: outputs.append(output))
        try:
            answer = self.model(**(inputs | self._options), return_dict=True)
        finally:
            hook.remove()
        self._cache = getattr(answer, self._argument)
        return self._hidden.of(outputs[0])

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, hidden_size] -> [rows, vocab_size] float32."""
        return self._hidden.logits(hidden)

    @torch.inference_mode()
    def measure(self, num_tokens: int) -> None:
        """Set in `shape` what a sequence of `num_tokens` takes in the cache, as that of two short ones was measured."""
        device = next(self.model.parameters()).device
        sizes = []
        for count in (_MEASURED, 2 * _MEASURED):
            self(torch.zeros(count, dtype=torch.int64, device=device), torch.arange(count, device=device))
            sizes.append(_tensor_bytes(self._cache))
        self._cache = None
        whole = sizes[0] + (sizes[1] - sizes[0]) * max(0, num_tokens - _MEASURED) / _MEASURED
        item = next(self.model.parameters()).element_size()
        elements = math.ceil(whole / (num_tokens * self.shape.num_layers * item))
        self.shape = replace(self.shape, num_kv_heads=1, kv_width=max(1, elements))

    def _new_cache(self) -> Any:
        from transformers import DynamicCache

        if not self._generation._supports_default_dynamic_cache():
            return None  # the model makes one of its own kind
        return DynamicCache(config=self.model.config.get_text_config(decoder=True))


def _tensor_bytes(held: object, depth: int = 3) -> int:
    """Bytes of the tensors in an object, its attributes, and lists and dicts in it."""
    if isinstance(held, torch.Tensor):
        return held.numel() * held.element_size()
    if depth == 0:
        return 0
    if isinstance(held, list | tuple):
        return sum(_tensor_bytes(item, depth) for item in held)
    items = held if isinstance(held, dict) else getattr(held, "__dict__", {})
    return sum(_tensor_bytes(item, depth - 1) for item in items.values())
