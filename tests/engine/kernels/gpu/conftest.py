"""Where kernels for GPUs are tested: on one where there is one, else on the CPU by Triton's interpreter."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    pytest.importorskip("triton", reason="Triton is not installed here, and no kernel of it is used")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
