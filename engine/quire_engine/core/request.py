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
from quire_engine.core.step import LATEST, ScheduledSequence
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

    One that `runs_ahead` has moved on as soon as a step is under way, and `LATEST` stands for what that samples.

        token_ids  [ prompt ............ | output ... | LATEST ]
        computed   [ in the KV cache, or on the way . ]
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
    num_in_flight: int = 0  # steps that it is in whose results are not there yet: one at most, but where it runs ahead
    ahead: bool = False  # whether a step may take it while its latest token is under way, but for its images
    num_awaited: int = 0  # of `token_ids`, the last ones: those are `LATEST`
    longest: int = 0  # the length at which its answer is cut
    started_at: float | None = None  # by time.monotonic(), when a step first had a part of it
    sound: bool = True  # whether finite logits have shown that so is all that it has computed
    num_sound: int = 0  # tokens of which they have shown it
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
    def num_known_tokens(self) -> int:
        return len(self.token_ids) - self.num_awaited

    @property
    def num_output_tokens(self) -> int:
        """Those that are known."""
        return self.num_known_tokens - self.num_prompt_tokens

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

    @property
    def in_flight(self) -> bool:
        return self.num_in_flight > 0

    @property
    def runs_ahead(self) -> bool:
        """Whether a step may take it while its latest token is under way."""
        return self.ahead and self.pending_images is None

    @property
    def ready(self) -> bool:
        """Whether the next step may take it. Of one that runs ahead the last token is known not to be computed."""
        return not self.in_flight or (self.runs_ahead and not (self.num_awaited and self.num_tokens >= self.longest))

    def depart(self, sequence: ScheduledSequence) -> None:
        """A step that computes `sequence` of it is under way."""
        self.num_in_flight += 1
        if self.runs_ahead:
            self.num_computed_tokens = sequence.end
            if sequence.samples:
                self.token_ids.append(LATEST)
                self.num_awaited += 1

    def take(self, token: int) -> None:
        """Know the next token."""
        if self.num_awaited:
            self.token_ids[-self.num_awaited] = token
            self.num_awaited -= 1
        else:
            self.token_ids.append(token)

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
        self.sound, self.num_sound = parent.sound, parent.num_sound

    def hash_full_blocks(self, block_size: int) -> None:
        """Bring `block_hashes` up to date with the tokens that are known."""
        while (len(self.block_hashes) + 1) * block_size <= self.num_known_tokens:
            start = len(self.block_hashes) * block_size
            parent = self.block_hashes[-1] if self.block_hashes else self._root_hash()
            within = [i for i in self.images if i.start < start + block_size and i.end > start]
            self.block_hashes.append(block_hash(parent, self.token_ids[start : start + block_size], within))

    def _root_hash(self) -> BlockHash:
        return root_hash(self.cache_salt, self.rotated_for, adapted=self.adapted, adapter=self.adapter)
