"""The scheduler's limits."""

from __future__ import annotations

from dataclasses import dataclass

from quire_engine.core.rotation import RotationByLength


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """Limits of the scheduler. Sizes are in tokens, blocks or requests, as named."""

    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    num_swap_blocks: int = 0  # pages of host memory; 0: whoever is preempted is computed anew
    num_stages: int = 1  # steps that may be under way
    runs_ahead: bool = False  # the executor feeds back: a request may be in a step while its last one is under way
    enable_chunked_prefill: bool = True
    enable_prefix_caching: bool = True
    rotation: RotationByLength | None = None
    max_adapters: int = 0  # different ones that requests may run with at once
    window: int | None = None  # the latest positions that a token sees, where no layer sees more

    @property
    def max_running(self) -> int:
        """Requests that may run at once: each of them has to get a token in every step."""
        return min(self.max_num_seqs, self.max_num_batched_tokens)

    @property
    def max_request_tokens(self) -> int:
        """The longest sequence that one request, alone, can be computed for."""
        pool = self.num_blocks * self.block_size
        return pool if self.enable_chunked_prefill else min(pool, self.max_num_batched_tokens)
