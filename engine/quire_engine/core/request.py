"""One sequence on its way through the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from quire_engine.core.block_hash import BlockHash, block_hash, root_hash
from quire_engine.core.grammar import GrammarState
from quire_engine.core.image_preparation import PendingImages
from quire_engine.core.images import PromptImage
from quire_engine.core.pooling import PoolingParams
from quire_engine.sampling_params import SamplingParams

if TYPE_CHECKING:
    from quire_engine.core.beam_group import BeamGroup


@dataclass(frozen=True, slots=True)
class SwappedPages:
    """What a preempted request keeps in host memory: the pages that follow its first `first` blocks."""

    first: int
    pages: list[int]
    num_tokens: int  # computed tokens, up to the end of the last page
    complete: bool  # whether nothing before them is needed any more


@dataclass(eq=False, slots=True)
class Request:
    """What the scheduler knows of a request. There is no prefill or decode mode: `num_computed_tokens` runs
    after `len(token_ids)`, and each step closes a part of the distance.

        token_ids  [ prompt ............ | output ... ]
        computed   [ in the KV cache ........ ]
    """

    request_id: str
    token_ids: list[int]  # the prompt, then the output
    num_prompt_tokens: int
    params: SamplingParams
    seed: int
    order: tuple[int, int]  # (priority, number of arrival): the lower one runs first
    cache_salt: str | None = None
    grammar: GrammarState | None = None  # what its answer has to follow
    pooling: PoolingParams | None = None  # its answer is a vector
    images: tuple[PromptImage, ...] = ()
    pending_images: PendingImages | None = None  # until all of them are computed
    adapted: bool = False  # whether its images are seen by a model that is changed for them
    adapter: int = 0  # the number of the one that it chose
    num_computed_tokens: int = 0
    block_ids: list[int] = field(default_factory=list)
    block_hashes: list[BlockHash] = field(default_factory=list)  # of the full blocks, where caching is on
    num_let_go: int = 0  # of `block_ids`, the first ones: out of every layer's sight, and no longer held
    num_published: int = 0  # of `block_ids`
    num_blocks_sent: int = 0  # of `block_ids`, that the executor knows
    num_cached_tokens: int | None = None  # found in the prefix cache when first admitted; None before
    num_prompt_logprobs: int = 0  # positions of the prompt, from the second on, whose logprobs were given out
    swapped: SwappedPages | None = None  # only while it waits
    rotated_for: int = 0  # see `RotationByLength.length`
    waiting: bool = True
    announced: bool = False  # whether the executor knows it
    in_flight: bool = False  # in a step whose result is not there yet: it cannot be in another
    started_at: float | None = None  # by time.monotonic(), when a step first had a part of it
    sound: bool = True  # whether finite logits have shown that so is all that it has computed
    sibling: Request | None = None  # one of its prompt, images and salt that came before; only until this one starts
    group: BeamGroup | None = None  # the beam search that it is a part of

    @property
    def unit(self) -> Sequence[Request]:
        """The requests that start, give way and end together with this one, itself included."""
        return (self,) if self.group is None else self.group.members

    @property
    def num_places(self) -> int:
        """How many running requests it is, or will be."""
        return 1 if self.group is None else self.group.search.width

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def held_block_ids(self) -> list[int]:
        return self.block_ids[self.num_let_go :]

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_missing_tokens(self) -> int:
        """Tokens to compute before the next one can be sampled: 1 for a request that decodes."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def num_reusable_tokens(self) -> int:
        """Tokens from the first on whose hidden states nobody needs, so that their blocks may come from a cache.

        The last token's gives the next one, and that of the token before gives a prompt token's logprobs.
        """
        wants_logprobs = self.params.prompt_logprobs is not None
        if wants_logprobs and self.num_prompt_logprobs < self.num_prompt_tokens - 1:
            return self.num_prompt_logprobs
        return len(self.token_ids) - 1

    def follow(self, parent: Request, num_kept: int, block_size: int) -> None:
        """Become what `parent` is, on the same blocks. Takes no references.

        The first `num_kept` blocks stay as they are: the same tokens are in them.
        """
        # The last one that is kept may be filled no further than the two agree.
        tokens, hashes = max(0, num_kept - 1) * block_size, min(num_kept, len(self.block_hashes))
        self.token_ids[tokens:] = parent.token_ids[tokens:]
        self.block_ids[num_kept:] = parent.block_ids[num_kept:]
        self.block_hashes[hashes:] = parent.block_hashes[hashes:]
        if num_kept == 0:
            self.num_let_go = parent.num_let_go
        self.num_computed_tokens, self.num_published = parent.num_computed_tokens, parent.num_published
        self.num_blocks_sent, self.rotated_for = min(self.num_blocks_sent, num_kept), parent.rotated_for
        self.sound = parent.sound

    def hash_full_blocks(self, block_size: int) -> None:
        """Bring `block_hashes` up to date with `token_ids`."""
        while (len(self.block_hashes) + 1) * block_size <= len(self.token_ids):
            start = len(self.block_hashes) * block_size
            parent = self.block_hashes[-1] if self.block_hashes else self._root_hash()
            within = [i for i in self.images if i.start < start + block_size and i.end > start]
            self.block_hashes.append(block_hash(parent, self.token_ids[start : start + block_size], within))

    def _root_hash(self) -> BlockHash:
        return root_hash(self.cache_salt, self.rotated_for, adapted=self.adapted, adapter=self.adapter)
