"""Prepared images between tensors and the plain values that cross processes."""

from __future__ import annotations

import torch

from quire_engine.core.images import PlainTensor, PreparedImage
from quire_engine.models.language_model import ImageInputs


def plain(inputs: ImageInputs) -> PreparedImage:
    """The same as plain values, on the tensors' memory where they lie in one piece on the CPU."""
    made = {}
    for name, x in inputs.items():
        x = x.detach().cpu().contiguous()
        data = x.reshape(-1).view(torch.uint8).numpy().data
        made[name] = PlainTensor(str(x.dtype).removeprefix("torch."), tuple(x.shape), data)
    return made


def on_device(prepared: PreparedImage, device: torch.device) -> ImageInputs:
    """The tensors that `prepared` was made of."""
    made = {}
    for name, x in prepared.items():
        # What came from another process is the message's, which nobody may write to.
        data = bytearray(x.data) if x.data.readonly else x.data
        made[name] = torch.frombuffer(data, dtype=getattr(torch, x.dtype)).view(x.shape).to(device)
    return made
