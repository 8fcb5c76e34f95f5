"""Records what runs on a GPU as CUDA graphs, which share their memory."""

from __future__ import annotations

import torch

from quire_engine.execution.padded_decodes import Capture, Run


class CudaGraphs:
    """A `Capture`. What was recorded is replayed on the current stream, one at a time, as its memory is shared."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Run) -> Run:
        graph = torch.cuda.CUDAGraph()
        # NCCL's own threads may ask the device something meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            run()
        return graph.replay


def capture_for(device: torch.device) -> Capture | None:
    """How steps are recorded on `device`; None where they cannot be."""
    return CudaGraphs() if device.type == "cuda" else None
