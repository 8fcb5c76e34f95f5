"""A model's linears and attention as spans of a step's profile."""

from __future__ import annotations

from torch import nn

from quire_engine.attention.paged_attention import PagedAttention
from quire_engine.core.step_profile import StepProfile
from quire_engine.layers.linear import Linear
from quire_engine.models.layers_together import LayersTogether


def time_parts(model: nn.Module, profile: StepProfile) -> None:
    """Time linears and attention until the profile is done. The rest of the model is what is left of its span."""
    for module in model.modules():
        if isinstance(module, LayersTogether):
            hook = module.register_forward_hook(lambda module, *_: profile.add(module.nanoseconds))
            profile.when_done(hook.remove)
        name = "linears" if isinstance(module, Linear) else "attention" if isinstance(module, PagedAttention) else None
        if name is not None:
            before = module.register_forward_pre_hook(lambda *_, name=name: profile.begin(name))
            after = module.register_forward_hook(lambda *_: profile.end())
            profile.when_done(before.remove)
            profile.when_done(after.remove)
