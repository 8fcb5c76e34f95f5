"""Hidden states and logits of a model of transformers, one apart from the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class HiddenStates:
    """Takes a model's hidden states before its head, and runs what comes after them alone.

    What is done to hidden states or logits beside the head's product (scaling, soft caps) is in the model's own
    forward and differs by family. So that forward runs, with a base that gives it the hidden states of before.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Raises `ValueError` for a model that is not a base with a head."""
        self._model = model
        self.base = _base(model)
        self._kind: Any = None

    def of(self, output: Any) -> torch.Tensor:
        """The hidden states [num_tokens, hidden_size] in what the base returned for one row of tokens."""
        self._kind = type(output)
        hidden: torch.Tensor = output[0]
        return hidden[0]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Rows of what `of` gave [rows, hidden_size] -> [rows, vocab_size] float32."""
        output = self._kind(last_hidden_state=hidden[None])
        tokens = torch.zeros((1, len(hidden)), dtype=torch.int64, device=hidden.device)
        # An attribute of the instance: it goes before the method of the class.
        self.base.forward = lambda *_, **__: output
        try:
            logits: torch.Tensor = self._model(input_ids=tokens, use_cache=False, return_dict=True).logits
        finally:
            del self.base.forward
        return logits[0].float()


@torch.inference_mode()
def _base(model: PreTrainedModel) -> nn.Module:
    """The part whose hidden states go to the head: of all that give some, the last to end."""
    found: list[nn.Module] = []

    def note(module: nn.Module, _: object, output: object) -> None:
        if module is not model and getattr(output, "last_hidden_state", None) is not None:
            found.append(module)

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    try:
        device = next(model.parameters()).device
        model(input_ids=torch.zeros((1, 1), dtype=torch.int64, device=device), use_cache=False, return_dict=True)
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise ValueError(f"{type(model).__name__} of transformers has no hidden states that its head could be run on")
    return found[-1]
