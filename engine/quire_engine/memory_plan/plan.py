"""Where the memory goes, and how many pages of KV cache are left. Numbers in, numbers out."""

from __future__ import annotations

from dataclasses import dataclass, replace

from quire_engine.memory_plan.architectures import makes_embeddings
from quire_engine.memory_plan.image_encoders import MAX_PIXELS, preparing_bytes
from quire_engine.memory_plan.model_shape import BYTES_OF_DTYPE, ModelShape
from quire_engine.sampling_params import MAX_LOGIT_BIAS

GIB = 1 << 30
CPU_POOL_AT_MOST = 4 * GIB
# The HTTP server process shares the cgroup; it takes some 90 MB with a tokenizer loaded.
HTTP_SERVER_BYTES = 128 << 20
# Tokens whose keys and values attention may copy at once into a scratch buffer.
GATHERED_TOKENS = 32768
# Rows of queries that attend at once, which bounds the mask of a long prompt, and scores that are written out at once
# where torch has no fused attention. A soft-capped one takes 12 bytes, with what it is made of and what is made of it,
# one with ALiBi 17, with its bias: so it is measured.
QUERY_ROWS = 512
SCORES = 1 << 24
SCORE_BYTES = 17
# Tokens whose logits a request adjusts, in pages of so many, at 12 bytes each; pages that are worked on at once, and
# the bytes that this takes for each token: places and ids of 8, values, counts and what they are made of.
SEEN_PAGE = 256
ADJUSTED_PAGES = 1024
_SEEN_BYTES = 12
_ADJUSTING_BYTES = 72
# Tokens whose logprobs are computed together at most, and bytes of their logits.
LOGPROB_ROWS = 128
LOGPROB_BYTES = 32 << 20
# Rows whose probabilities are sorted, or summed by their digits, together at most.
SORTED_ROWS = 16
# Of host memory, for each GPU, where --swap-space is unset.
SWAP_SPACE_ON_GPU = 4 * GIB
# Tokens that one step may compute where --max-num-batched-tokens is unset.
TOKENS_PER_STEP = {"cpu": 2048, "cuda": 8192}


@dataclass(frozen=True, kw_only=True)
class MemoryRequest:
    """What the plan depends on. Sizes are in bytes, tokens or blocks, as named."""

    shape: ModelShape
    dtype: str  # of activations and KV cache
    on_gpu: bool
    limit: int  # bytes: the device's memory, or the cgroup's limit on CPU
    resident: int  # bytes in use already, without the weights
    weights: int  # bytes
    utilization: float
    block_size: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_cache_memory_bytes: int | None = None
    num_blocks: int | None = None
    swap_space: int | None = None  # bytes of host memory for this device; None: what is usual
    host_room: int = 0  # bytes that the host has left for each of its GPUs
    image_room: int = 0  # bytes of host memory for images that are prepared: see `image_room`
    adapters: int = 0  # bytes of all that may be loaded at once, and of what a step takes for them


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes by purpose, and the size of the KV cache in blocks.

    `swap_space` and `image_room` are host memory: on CPU a part of `limit`, on a GPU beside it.
    """

    limit: int
    on_gpu: bool
    utilization: float
    resident: int
    http_server: int
    weights: int
    activations: int
    kv_cache: int
    swap_space: int
    num_blocks: int
    num_swap_blocks: int
    block_size: int
    image_room: int = 0
    adapters: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens that the KV cache holds."""
        return self.num_blocks * self.block_size

    @property
    def others(self) -> int:
        """Bytes of the limit beside weights, activations and KV cache."""
        return (
            self.resident + self.http_server + self.adapters + (0 if self.on_gpu else self.swap_space + self.image_room)
        )

    def with_blocks(self, num_blocks: int, num_swap_blocks: int) -> MemoryPlan:
        """The plan with no more than so many pages."""
        each = self.kv_cache // self.num_blocks
        return replace(
            self,
            num_blocks=num_blocks,
            num_swap_blocks=num_swap_blocks,
            kv_cache=each * num_blocks,
            swap_space=each * num_swap_blocks,
        )

    def table(self) -> str:
        """The plan for people, one purpose a line."""
        rows = [
            (f"limit x {self.utilization:.2f}", int(self.limit * self.utilization)),
            ("in use before", self.resident),
            ("HTTP server", self.http_server),
            ("weights", self.weights),
            ("activations, at most", self.activations),
            ("KV cache", self.kv_cache),
            ("swap space on the host", self.swap_space),
        ]
        if self.adapters:
            rows.insert(4, ("adapters, at most", self.adapters))
        if self.image_room:
            rows.append(("images on the host", self.image_room))
        lines = [f"  {name:<22}{size / GIB:>9.3f} GiB" for name, size in rows]
        pages = f"  {self.num_blocks} pages of {self.block_size} tokens"
        if self.num_swap_blocks:
            pages += f", and {self.num_swap_blocks} in host memory"
        return "\n".join(["memory:", *lines, pages])


def plan_memory(request: MemoryRequest) -> MemoryPlan:
    """Size the KV cache. `num_blocks` wins over `kv_cache_memory_bytes`, which wins over the computed size.

    Raises `ValueError`, with the numbers and the flags to change, when one request of `max_model_len` tokens
    does not fit, or the host cannot hold the swap space.
    """
    if request.on_gpu and request.swap_space is not None and request.swap_space > max(0, request.host_room):
        raise ValueError(
            f"--swap-space asks for {_gib(request.swap_space)} of host memory for each GPU and the host has "
            f"{_gib(max(0, request.host_room))} left for each: lower it, or raise the container's memory limit"
        )
    plan = size_memory(request)
    if plan.num_tokens < request.max_model_len:
        raise ValueError(_shortage(plan, request))
    return plan


def size_memory(request: MemoryRequest) -> MemoryPlan:
    """As `plan_memory`, also where no request of `max_model_len` tokens fits."""
    activations = activation_bytes(request)
    block_bytes = request.shape.kv_bytes_per_token(request.dtype) * request.block_size
    http_server = 0 if request.on_gpu else HTTP_SERVER_BYTES
    num_swap_blocks = swap_bytes(request) // block_bytes if block_bytes else 0
    swap_space = num_swap_blocks * block_bytes
    used = request.resident + http_server + request.weights + request.adapters + activations
    if not request.on_gpu:
        used += swap_space + request.image_room
    allowed = int(request.limit * request.utilization) - used
    pool = allowed if request.on_gpu else min(allowed, CPU_POOL_AT_MOST)
    if request.kv_cache_memory_bytes is not None:
        pool = request.kv_cache_memory_bytes
    num_blocks = max(0, pool // block_bytes) if block_bytes else _blocks_of_a_step(request)
    if request.num_blocks is not None:
        num_blocks = request.num_blocks
    return MemoryPlan(
        limit=request.limit,
        on_gpu=request.on_gpu,
        utilization=request.utilization,
        resident=request.resident,
        http_server=http_server,
        weights=request.weights,
        activations=activations,
        kv_cache=num_blocks * block_bytes,
        swap_space=swap_space,
        num_blocks=num_blocks,
        num_swap_blocks=num_swap_blocks,
        block_size=request.block_size,
        image_room=request.image_room,
        adapters=request.adapters,
    )


def image_room(shape: ModelShape, dtype: str) -> int:
    """Bytes of host memory in which images are prepared, and wait to be computed: what the largest takes, at least."""
    if not shape.image_tokens:
        return 0
    return preparing_bytes(shape.image_pixels * BYTES_OF_DTYPE[dtype], MAX_PIXELS)


def _blocks_of_a_step(request: MemoryRequest) -> int:
    """Pages that whole prompts are counted in where nothing is kept of them, with what the scheduler holds back."""
    tokens = max(request.max_num_batched_tokens, request.max_model_len)
    blocks = -(-tokens // request.block_size) + min(request.max_num_seqs, tokens)
    return blocks + blocks // 50 + 1


def swap_bytes(request: MemoryRequest) -> int:
    """Host memory for preempted requests of one device. On CPU none, unless asked for: the pool is host memory too."""
    if request.swap_space is not None:
        return request.swap_space
    return max(0, min(SWAP_SPACE_ON_GPU, request.host_room - request.image_room)) if request.on_gpu else 0


def activation_bytes(request: MemoryRequest) -> int:
    """The most that a step's intermediate results and the tokens that it adjusts take, computed from the shapes."""
    shape, item = request.shape, BYTES_OF_DTYPE[request.dtype]
    heads = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
    # The residual, its norm and the widest of: projections with their rotated copies, the gated MLP.
    mlp = 4 * shape.intermediate_size
    if shape.num_experts > 1:  # beside the shared ones each token is copied to its experts, and their results gathered
        mlp += shape.experts_per_token * (3 * shape.hidden_size + 4 * shape.expert_size)
    tokens = request.max_num_batched_tokens * (3 * shape.hidden_size + max(3 * heads, mlp)) * item
    attending = request.max_num_batched_tokens * 3 * (shape.hidden_size + heads) * item + score_bytes(request)
    gathered = max(GATHERED_TOKENS, request.max_model_len) * shape.kv_bytes_per_token_and_layer(request.dtype)
    if makes_embeddings(shape.architecture):
        return max(tokens, attending) + gathered
    # Logits, their copy for logprobs and the probabilities in float32; these, and their running sums, in float64.
    rows = min(request.max_num_seqs, request.max_num_batched_tokens)
    logits = rows * shape.vocab_size * (4 + 4 + 4 + 8 + 8)
    # Of a few rows more: probabilities, weights and ones in float64, digits, places, and a selection of the weights.
    logits += min(rows, SORTED_ROWS) * shape.vocab_size * (4 + 8 + 8 + 4 + 4 + 8 + 8)
    # Beside the logits and their copy, where penalties are taken of them.
    pages = rows * seen_pages(shape.vocab_size, request.max_model_len)
    adjusting = rows * shape.vocab_size * (4 + 4) + min(pages, ADJUSTED_PAGES) * SEEN_PAGE * _ADJUSTING_BYTES
    # Logits that logprobs of prompts are read from, their exponentials, and what they are compared with.
    of_prompts = logprob_rows(shape.vocab_size) * shape.vocab_size * (4 + 4 + 4)
    # Images that are computed in part, and the rows of those in the step.
    images = 2 * (request.max_num_batched_tokens + shape.image_tokens) * shape.hidden_size * item
    images = images if shape.image_tokens else 0
    encoded = shape.image_elements * item + images
    layers = max(tokens, attending) + gathered + images
    return pages * SEEN_PAGE * _SEEN_BYTES + max(layers, encoded, logits, adjusting, of_prompts)


def score_bytes(request: MemoryRequest) -> int:
    """What attention takes for a part of a prompt beside queries, keys and values: masks, and scores if not fused."""
    shape, item = request.shape, BYTES_OF_DTYPE[request.dtype]
    longest, rows = request.max_model_len, min(QUERY_ROWS, request.max_num_batched_tokens)
    mask = rows * longest * (1 + 1 + item)
    if not shape.writes_scores:
        return mask
    scores = max(SCORES, shape.num_heads * max(longest, GATHERED_TOKENS)) * SCORE_BYTES
    # Keys, and after them values, are copied for the heads that share them.
    return mask + scores + longest * shape.num_heads * shape.head_dim * item


def seen_pages(vocab_size: int, longest: int | None) -> int:
    """Pages of the tokens that one request of up to `longest` tokens can have seen or given a bias."""
    tokens = vocab_size if longest is None else min(vocab_size, longest + MAX_LOGIT_BIAS)
    return -(-tokens // SEEN_PAGE)


def logprob_rows(vocab_size: int) -> int:
    """How many tokens of a prompt are looked at together for their logprobs: more have more logits than memory."""
    return max(1, min(LOGPROB_ROWS, LOGPROB_BYTES // (4 * vocab_size)))


def _shortage(plan: MemoryPlan, request: MemoryRequest) -> str:
    allowed = int(plan.limit * plan.utilization)
    others = plan.others - plan.adapters - (0 if plan.on_gpu else plan.swap_space)
    used = f"weights {_gib(plan.weights)}, activations {_gib(plan.activations)}, others {_gib(others)}"
    if plan.adapters:
        used += f", adapters {_gib(plan.adapters)}"
    if not plan.on_gpu and plan.swap_space:
        used += f", swap space {_gib(plan.swap_space)}"
    sizes = f"of {_gib(plan.limit)} x {plan.utilization:.2f} = {_gib(allowed)}: {used}"
    longest = plan.num_tokens
    wanted = -(-request.max_model_len // request.block_size)
    if request.num_blocks is not None:
        ways = [f"raise --num-gpu-blocks-override to {wanted}"]
    elif request.kv_cache_memory_bytes is not None:
        block_bytes = request.shape.kv_bytes_per_token(request.dtype) * request.block_size
        ways = [f"raise --kv-cache-memory-bytes to {wanted * block_bytes}"]
    else:
        ways = ["raise --gpu-memory-utilization" if request.on_gpu else "raise the container's memory limit"]
        if plan.adapters:
            ways.append("lower --max-cpu-loras or --max-lora-rank")
        if not plan.on_gpu and plan.swap_space:
            ways.append("lower --swap-space")
    if longest > 0:
        ways.append(f"set --max-model-len to at most {longest}")
    return (
        f"the KV cache holds {longest} tokens and one request may need {request.max_model_len} ({sizes}): "
        f"{', or '.join(ways)}"
    )


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"
