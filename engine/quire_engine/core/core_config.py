"""What the core needs to know of the model, beside the scheduler's limits."""

from __future__ import annotations

from dataclasses import dataclass

from quire_engine.core.images import TEXT_ALONE, ImageTokens
from quire_engine.core.pooling import Pooling
from quire_engine.core.scheduler_config import SchedulerConfig
from quire_engine.sampling_params import SamplingParams


@dataclass(frozen=True, kw_only=True)
class CoreConfig(SchedulerConfig):
    """The core's settings. Sizes are in tokens, blocks or requests, as named."""

    max_model_len: int
    vocab_size: int
    eos_token_ids: tuple[int, ...] = ()
    seed: int = 0
    use_priority: bool = False
    pooling: Pooling | None = None  # of a model that makes embeddings
    images: ImageTokens | None = None  # of a model that takes images
    adapter_room: int = 0  # adapters that may be in memory at once
    no_images: str = TEXT_ALONE  # why, where it takes none

    @property
    def max_tokens(self) -> int:
        """The longest sequence, prompt and answer."""
        return min(self.max_model_len, self.max_request_tokens)

    def longest(self, params: SamplingParams, num_prompt_tokens: int) -> int:
        """The length at which a prompt and its answer are cut."""
        answer = self.max_tokens if params.max_tokens is None else params.max_tokens
        return min(num_prompt_tokens + answer, self.max_tokens)

    def max_beam_tokens(self, params: SamplingParams) -> int:
        """The longest beam, with its prompt, of which there is room for all at once."""
        return min(self.max_tokens, self.num_blocks // params.num_sequences * self.block_size)

    def ends(self, params: SamplingParams) -> dict[int, int | None]:
        """The tokens that end an answer, and the reason to give: none for EOS."""
        eos = () if params.ignore_eos else self.eos_token_ids
        return {token: token for token in params.stop_token_ids} | dict.fromkeys(eos)
