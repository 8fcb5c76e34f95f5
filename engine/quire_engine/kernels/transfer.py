"""From the host to the device, without a wait."""

from __future__ import annotations

import numpy as np
import torch


def to_device(values: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """What `values`, of the host, hold now, on `device` and in order with what runs there.

    A GPU reads it from pinned memory, for which torch sees to it that nobody writes there before. On the CPU it is the
    same memory.
    """
    tensor = values if isinstance(values, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(values))
    return tensor.contiguous().pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
