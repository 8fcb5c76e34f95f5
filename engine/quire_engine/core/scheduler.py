"""Decides what each step computes, and who gives way when the pages run out."""

from __future__ import annotations

from dataclasses import dataclass

from quire_engine.core.block_pool import BlockPool
from quire_engine.core.request import Request
from quire_engine.core.step import NewSequence, ScheduledSequence, Step
from quire_engine.core.swap_space import SwapSpace
from quire_engine.core.waiting_queue import WaitingQueue


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """Limits of the scheduler. Sizes are in tokens, blocks or requests, as named."""

    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    num_swap_blocks: int = 0  # pages of host memory; 0: whoever is preempted is computed anew
    enable_chunked_prefill: bool = True
    enable_prefix_caching: bool = True

    @property
    def max_running(self) -> int:
        """Requests that may run at once: each of them has to get a token in every step."""
        return min(self.max_num_seqs, self.max_num_batched_tokens)

    @property
    def max_request_tokens(self) -> int:
        """The longest sequence that one request, alone, can be computed for."""
        pool = self.num_blocks * self.block_size
        return pool if self.enable_chunked_prefill else min(pool, self.max_num_batched_tokens)


class Scheduler:
    """One token budget a step: requests that decode first, then prompts begun, then prompts that wait.

    A prompt gets all its blocks when it is admitted, so that prompts never starve each other halfway. When a
    decode finds no block, the request of the lowest priority, then the newest, gives all of its blocks back and
    waits in its old place; what only it held goes to host memory where there is room. The first request in order
    therefore always moves, and every request ends.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.pool = BlockPool(config.num_blocks)
        self.swap = SwapSpace(config.num_swap_blocks, config.block_size)
        self.waiting = WaitingQueue()
        self.running: dict[str, Request] = {}
        self.preempted: list[str] = []  # in the latest step
        self.num_preemptions = 0
        self.prefix_cache_queries = 0
        self.prefix_cache_hits = 0
        self._removed: list[str] = []
        self._reserve = max(1, config.num_blocks // 100)

    def add(self, request: Request) -> None:
        """Queue a request. It must not be longer than `max_request_tokens`, now or ever."""
        if self.config.enable_prefix_caching:
            request.hash_full_blocks(self.config.block_size)
        self.waiting.push(request)

    def remove(self, request: Request) -> None:
        """Forget a request that ended, whether it waits or runs, and free its blocks."""
        if request.waiting:
            self.waiting.remove(request)
            self.swap.drop(request)
        else:
            self._stop_running(request)

    def schedule(self) -> Step:
        """The next step. Empty only when nothing runs or waits."""
        self.preempted = []
        step = Step()
        left = self._schedule_running(step)
        # Blocks were just taken from a request: handing them to another one would only move the shortage.
        if not self.preempted:
            self._admit(step, left)
        self.swap.end_step()
        step.removed, self._removed = self._removed, []
        return step

    def _schedule_running(self, step: Step) -> int:
        """Schedule the requests that run, preempting where blocks run out. Returns what is left of the budget."""
        self._make_room(step)
        left = self.config.max_num_batched_tokens
        decodes = [r for r in self.running.values() if r.num_missing_tokens == 1]
        prompts = [r for r in self.running.values() if r.num_missing_tokens > 1]
        for request in decodes + prompts:
            count = min(request.num_missing_tokens, left)
            if count == 0:
                break
            request.block_ids += self.pool.allocate(self._num_blocks_to_grow(request))
            self._put(step, request, count)
            left -= count
        return left

    def _make_room(self, step: Step) -> None:
        """Preempt until each request that runs can get the blocks of its next step. Only decodes need any."""
        needed = sum(map(self._num_blocks_to_grow, self.running.values()))
        while needed > self.pool.num_free:
            victim = max(self.running.values(), key=lambda r: r.order)
            needed -= self._num_blocks_to_grow(victim)
            self._preempt(victim, step)

    def _num_blocks_to_grow(self, request: Request) -> int:
        """Blocks that a running request lacks for the tokens that it has: prompts were given all at once."""
        return max(0, self._num_blocks(request.num_tokens) - len(request.block_ids))

    def _admit(self, step: Step, left: int) -> None:
        """Start requests in order, until one does not fit."""
        config, pool = self.config, self.pool
        while self.waiting and left > 0 and len(self.running) < config.max_running:
            request = self.waiting.peek()
            reusable = request.num_reusable_tokens // config.block_size
            cached = pool.match(request.block_hashes[:reusable])
            swapped = self.swap.pages_after(request, len(cached))
            computed = len(cached) * config.block_size
            if swapped and request.swapped is not None:
                computed = request.swapped.num_tokens
            count = request.num_tokens - computed
            if count > left and not config.enable_chunked_prefill:
                return
            count = min(count, left)
            needed = self._num_blocks(request.num_tokens) - len(cached)
            reserve = self._reserve if self.running else 0
            if needed + pool.num_free_among(cached) + reserve > pool.num_free:
                return
            self.waiting.pop()
            pool.acquire(cached)
            blocks = pool.allocate(needed)
            step.swap_in += zip(swapped, blocks, strict=False)
            request.block_ids = cached + blocks
            self._start_running(request, len(cached), computed)
            step.new.append(_new_sequence(request))
            self._put(step, request, count)
            left -= count

    def _start_running(self, request: Request, num_cached_blocks: int, num_computed_tokens: int) -> None:
        request.waiting = False
        self.swap.read_back(request)
        request.num_published = num_cached_blocks
        request.num_computed_tokens = num_computed_tokens
        if request.num_cached_tokens is None:
            request.num_cached_tokens = request.num_computed_tokens
            if self.config.enable_prefix_caching:
                self.prefix_cache_queries += request.num_tokens
                self.prefix_cache_hits += request.num_computed_tokens
        self.running[request.request_id] = request

    def _put(self, step: Step, request: Request, count: int) -> None:
        """Put `count` tokens of a request into the step and publish the blocks that they complete."""
        start, end = request.num_computed_tokens, request.num_computed_tokens + count
        step.scheduled.append(
            ScheduledSequence(
                request.request_id,
                request.token_ids[start:end],
                start,
                request.block_ids[request.num_blocks_sent :],
                samples=end == request.num_tokens,
                allowed=request.grammar.allowed if request.grammar and end == request.num_tokens else None,
            )
        )
        request.num_blocks_sent = len(request.block_ids)
        if self.config.enable_prefix_caching:
            request.hash_full_blocks(self.config.block_size)
            for i in range(request.num_published, end // self.config.block_size):
                self.pool.publish(request.block_ids[i], request.block_hashes[i])
                request.num_published = i + 1

    def _preempt(self, request: Request, step: Step) -> None:
        step.swap_out += self.swap.keep([request], self.pool)
        self._stop_running(request)
        request.waiting = True
        self.waiting.push(request)
        self.preempted.append(request.request_id)
        self.num_preemptions += 1

    def _stop_running(self, request: Request) -> None:
        del self.running[request.request_id]
        self.pool.release(request.block_ids)
        request.block_ids = []
        request.num_computed_tokens = request.num_published = request.num_blocks_sent = 0
        self._removed.append(request.request_id)

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.config.block_size)

    def check_integrity(self) -> None:
        """Raise `AssertionError` when the books do not agree with each other."""
        self.pool.check_integrity(r.block_ids for r in self.running.values())
        for request in self.running.values():
            assert request.swapped is None, f"{request.request_id} runs and keeps pages in host memory"
            assert not request.waiting, f"{request.request_id} runs and waits"
            assert request.num_computed_tokens < request.num_tokens, f"{request.request_id} has nothing to compute"
            held = len(request.block_ids) * self.config.block_size
            assert request.num_computed_tokens <= held, f"{request.request_id} has computed more than it holds"
        for request in self.waiting:
            assert request.waiting, f"{request.request_id} waits and does not know"
            assert not request.block_ids, f"{request.request_id} waits and holds blocks"
        self.swap.check_integrity(self.waiting)


def _new_sequence(request: Request) -> NewSequence:
    return NewSequence(
        request.request_id,
        request.num_prompt_tokens,
        request.params,
        request.seed,
        token_ids=list(request.token_ids) if request.params.looks_back else [],
        prompt_logprobs_from=request.num_prompt_logprobs + 1,
    )
