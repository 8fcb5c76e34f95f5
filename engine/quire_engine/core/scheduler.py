"""Decides what each step computes, and who gives way when the pages run out."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from quire_engine.core.block_tables import BlockTables
from quire_engine.core.look import Look
from quire_engine.core.request import Request
from quire_engine.core.rotation import RotationByLength
from quire_engine.core.scheduler_config import SchedulerConfig
from quire_engine.core.step import LATEST, NewSequence, ScheduledSequence, Step
from quire_engine.core.waiting_queue import WaitingQueue


class Scheduler:
    """One token budget a step: requests that decode first, then prompts begun, then prompts that wait.

    A prompt gets all its blocks when it is admitted, so that prompts never starve each other halfway. When a
    decode finds no block, the request of the lowest priority, then the newest, gives all of its blocks back and
    waits in its old place; what only it held goes to host memory where there is room. A request that waits has those
    of lower priority give way when that makes room for it, or a place for its adapter. The first request in order that
    has such a place therefore always moves, and every request ends. The beams of a search share blocks, and do all of
    this together.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.waiting = WaitingQueue()
        self.running: dict[str, Request] = {}
        self.preempted: list[str] = []  # in the latest step
        self.num_preemptions = 0
        self.prefix_cache_queries = 0
        self.prefix_cache_hits = 0
        self._tables = BlockTables(
            num_blocks=config.num_blocks,
            num_swap_blocks=config.num_swap_blocks,
            block_size=config.block_size,
            caches=config.enable_prefix_caching,
            window=config.window,
        )
        self.pool, self.swap = self._tables.pool, self._tables.swap
        self.adapters: Counter[int] = Counter()  # by number: the requests that run with each, 0 for none
        self._num_places = 0  # of `max_running`, that are taken
        self._removed: list[str] = []
        self._swapped_out: dict[int, int] = {}  # blocks by host page: copies that no step has taken along yet
        self._prompts_ended: set[Request] = set()  # in this step
        self._num_begun_beside = 0  # siblings, in this step: each still needs a block to write to
        self._reserve = max(1, config.num_blocks // 100)
        self._look: Look | None = None  # at the first request that waits

    def add(self, request: Request) -> None:
        """Queue a request. It must not be longer than `max_request_tokens`, now or ever."""
        self._name(request)
        self.waiting.push(request)

    def num_known_tokens(self, request: Request) -> int:
        """Tokens of a request, which waits or is to be added, that need not be computed if it starts now."""
        self._name(request)
        return self._tables.num_known_tokens(request)

    def remove(self, request: Request) -> None:
        """Forget a request that ended, whether it waits or runs, and free its blocks."""
        if request.waiting:
            self.waiting.remove(request)
            for member in request.unit:
                self.swap.drop(member)
        else:
            self._stop(request)

    def fail(self, request: Request) -> None:
        """Forget a running request that was computed wrongly, and what only it held."""
        held = [block for member in request.unit for block in member.held_block_ids]
        self.remove(request)
        self.pool.forget(held)

    def fork(self, parent: Request, child: Request) -> None:
        """Have `child` run on from where `parent` is, on its blocks. Who writes to a shared block copies it first."""
        self._tables.fork(parent, child)
        child.waiting = False
        self._run(child)

    def drop(self, member: Request) -> None:
        """Have one of the running beams of a search hold nothing any more. The search keeps its place."""
        del self.running[member.request_id]
        self.adapters[member.adapter] -= 1
        if not self.adapters[member.adapter]:
            del self.adapters[member.adapter]
        self._tables.stop(member)
        if member.announced:
            self._removed.append(member.request_id)
            member.announced = False

    def schedule(self) -> Step:
        """The next step. Empty only when nothing runs or waits, or while other steps are under way.

        Of the requests that run, it takes the share of one stage, so that those of the others are left to them.
        """
        self.preempted = []
        step = Step()
        if self.config.runs_ahead and self._has_to_wait():
            return step
        if self.config.rotation is not None:
            self._rotate_anew(self.config.rotation)
        self._tables.let_go(self.running.values())
        if not self._make_room():
            return step
        # Blocks were just taken from a request: handing them to another one would only move the shortage.
        admits = not self.preempted
        if admits:
            self._make_place()
            self._make_way()
        left = self.config.max_num_batched_tokens
        ready = [r for r in self.running.values() if r.ready]
        share = -(-len(self.running) // self.config.num_stages)
        for request in [r for r in ready if r.num_missing_tokens == 1][:share]:
            left -= self._put(step, request, left)
        for request in sorted([r for r in ready if r.num_missing_tokens > 1], key=_order):
            # A prompt begun does not hold up one of a higher priority.
            left -= self._admit(step, left, above=request.order[0]) if admits else 0
            left -= self._put(step, request, left)
        if admits:
            self._admit(step, left)
        self._tables.end_step()
        self._prompts_ended.clear()
        self._num_begun_beside = 0
        if step.scheduled:
            step.removed, self._removed = self._removed, []
            step.swap_out, self._swapped_out = [(block, page) for page, block in self._swapped_out.items()], {}
            step.cleared, self.pool.cleared = self.pool.cleared, []
        return step

    def publish(self, request: Request) -> None:
        """Let others find the blocks that steps under way fill, once their tokens are known."""
        self._tables.publish(request, request.num_computed_tokens)

    def _has_to_wait(self) -> bool:
        """Whether the steps under way have to end first: for a request that does not run ahead, or to stop some.

        Who is stopped computes its tokens again, and has to know them. A lack of blocks is looked for later.
        """
        running = self.running.values()
        if not any(r.in_flight for r in running):
            return False
        if not all(r.runs_ahead for r in running):
            return True
        if self.waiting and any(r.order[0] > self.waiting.peek().order[0] for r in running):
            return True
        rotation = self.config.rotation
        return rotation is not None and any(_outgrows(r, rotation) for r in running)

    def _name(self, request: Request) -> None:
        """Say what the request's blocks hold, so that others may find them."""
        if self.config.rotation is not None:
            request.rotated_for = self.config.rotation.length(request.num_prompt_tokens, request.num_tokens)
        if self.config.enable_prefix_caching:
            if request.sibling is not None and request.sibling.rotated_for == request.rotated_for:
                of_prompt = request.num_prompt_tokens // self.config.block_size
                request.block_hashes = request.sibling.block_hashes[:of_prompt]
            request.hash_full_blocks(self.config.block_size)

    def _rotate_anew(self, rotation: RotationByLength) -> None:
        """Have requests that have grown out of what their keys are rotated for begin again, all tokens a prompt."""
        for request in list(self.running.values()):
            if not _outgrows(request, rotation) or request.waiting:  # with the beam before it
                continue
            first = request.unit[0]
            if first.group is not None:
                first.group.begin_round_again()
            self._stop(first)
            for member in first.unit:
                member.waiting = True
                member.block_hashes = []
                self._name(member)
            self.waiting.push(first)

    def _make_room(self) -> bool:
        """Preempt until each request that runs can get the blocks of its next step.

        False where that has to wait for requests in flight: the last in order may be one of them.
        """
        lacking = self._tables.num_lacking([r for r in self.running.values() if r.ready])
        if lacking <= self.pool.num_free:
            return True
        if any(r.in_flight for r in self.running.values()):
            return False
        by_order = sorted(self.running.values(), key=_order)
        while lacking > self.pool.num_free:
            victim = by_order.pop()
            if not victim.waiting:
                lacking -= self._tables.num_lacking(victim.unit)
                self._preempt(victim)
        return True

    def _make_place(self) -> None:
        """Preempt who runs with one adapter, where all have a lower priority than the first that wants its place.

        Only where that can start, once all of lower priority have given way.
        """
        first = self.waiting.first_with_adapter()
        if first is None or not self._lacks_place(first):
            return
        highest: dict[int, int] = {}
        for request in self.running.values():
            if request.adapter:
                highest[request.adapter] = min(request.order[0], highest.get(request.adapter, request.order[0]))
        adapter = max(highest, key=highest.__getitem__)
        if highest[adapter] <= first.order[0]:
            return
        ahead = self.waiting.peek()
        if ahead is not first and not self._fits(ahead, self.config.max_num_batched_tokens):
            return
        lower = sorted((r for r in self.running.values() if r.order[0] > first.order[0]), key=_order)
        if self._who_gives_way(first, lower) is None:
            return
        for request in list(self.running.values()):
            leads = request.adapter == adapter and request is request.unit[0]
            # Others of them that are in a step now follow when that has ended: nobody takes their place before.
            if leads and not any(member.in_flight for member in request.unit):
                self._preempt(request)

    def _lacks_place(self, request: Request) -> bool:
        """Whether other adapters have all the places."""
        full = len(self.adapters) - (0 in self.adapters) >= self.config.max_adapters
        return full and request.adapter not in self.adapters

    def _make_way(self) -> None:
        """Preempt requests of lower priority than the first that waits, if that makes room for it."""
        first = self._first_waiting()
        if first is None:
            return
        lower = sorted((r for r in self.running.values() if r.order[0] > first.order[0]), key=_order)
        lower = [r for r in lower if not any(member.in_flight for member in r.unit)]
        if not lower:
            return
        # What is not enough even if each block is freed need not be looked at more closely.
        most = sum(len(r.block_ids) for r in lower) - self._tables.num_lacking(self.running.values())
        if self._last_look(first).least_lacking(self.pool) > most or self._look_at(first).num_lacking > most:
            return
        for victim in self._who_gives_way(first, lower) or []:
            self._preempt(victim)

    def _who_gives_way(self, first: Request, lower: list[Request]) -> list[Request] | None:
        """Of requests in order, with their beams, the last ones that make room for `first`; None where all do not."""
        tables, victims = self._tables, list[Request]()
        places = self.config.max_running - self._num_places - first.num_places
        lacking = tables.num_lacking(self.running.values())
        blocks = self.pool.num_free - lacking - tables.to_start(first.unit)[0]
        held = Counter(dict.fromkeys(tables.cached(first), -1))  # counted as taken: no victim frees them
        while lower and (places < 0 or blocks < self._reserve):
            victim = lower.pop()
            if victim is victim.unit[0]:
                victims.append(victim)
                places += victim.num_places
                blocks += tables.num_lacking(victim.unit) + tables.num_freed(victim.unit, held)
        nobody_else = sum(v.num_places for v in victims) == self._num_places
        return victims if places >= 0 and blocks >= (0 if nobody_else else self._reserve) else None

    def _admit(self, step: Step, left: int, above: int | None = None) -> int:
        """Start requests in order, until one does not fit or has no higher priority than `above`.

        Returns what they take of the budget, of which `left` tokens are left.
        """
        taken = 0
        while (request := self._first_waiting()) is not None:
            if above is not None and request.order[0] >= above:
                break
            if request.sibling is not None and self._fits_beside(request, request.sibling):
                self.waiting.remove(request)
                self._begin_as(request.sibling, request, step)
                continue
            if taken == left or not self._fits(request, left - taken):
                break
            self.waiting.remove(request)
            self._num_places += request.num_places
            for member in request.unit:
                self._start(member, step)
                taken += self._put(step, member, left - taken)
        return taken

    def _fits(self, request: Request, left: int) -> bool:
        if self._num_places + request.num_places > self.config.max_running:
            return False
        reserve = self._reserve + self._num_begun_beside if self.running else 0
        return self._has_room(self._last_look(request), reserve, left) and self._has_room(
            self._look_at(request), reserve, left
        )

    def _last_look(self, request: Request) -> Look:
        """At `request`, the first that waits: a new one only where the last one tells nothing any more."""
        look = self._look
        return look if look is not None and look.holds(request, self.pool) else self._look_at(request)

    def _look_at(self, request: Request) -> Look:
        blocks, computed = self._tables.to_start(request.unit)
        awaited = self._tables.awaited(request.unit)
        lacking = blocks - self.pool.num_free
        self._look = Look(request, lacking, request.num_tokens - computed, self.pool.num_freed, awaited)
        return self._look

    def _has_room(self, look: Look, reserve: int, left: int) -> bool:
        """Whether the request may start, at best, with `reserve` blocks to spare and `left` tokens of the budget."""
        if look.num_tokens > left and not self.config.enable_chunked_prefill:
            return False
        return look.least_lacking(self.pool) + reserve <= 0

    def _fits_beside(self, request: Request, sibling: Request) -> bool:
        """Whether `request` may begin where `sibling` ends the prompt of both, with a block to write to later."""
        if request.group or sibling.group or request.pooling or request.params.prompt_logprobs is not None:
            return False
        places = self.config.max_running - self._num_places
        blocks = self.pool.num_free - self._reserve - self._num_begun_beside
        return sibling in self._prompts_ended and places > 0 and blocks > 0

    def _begin_as(self, sibling: Request, request: Request, step: Step) -> None:
        """Start a request on what `sibling` computes in this step: its first token comes after the same prompt."""
        self._num_places += 1
        self._num_begun_beside += 1
        self.fork(sibling, request)
        request.num_computed_tokens = request.num_cached_tokens = request.num_tokens
        request.sibling = None
        self._emit(step, request, 0, after=sibling.request_id)

    def _start(self, request: Request, step: Step) -> None:
        self._tables.start(request, step)
        request.waiting, request.sibling, self._look = False, None, None
        self._run(request)
        if request.num_cached_tokens is None:
            request.num_cached_tokens = request.num_computed_tokens
            if self.config.enable_prefix_caching:
                self.prefix_cache_queries += request.num_tokens
                self.prefix_cache_hits += request.num_computed_tokens

    def _run(self, request: Request) -> None:
        if request.request_id not in self.running:  # a beam may become another one while it runs
            self.adapters[request.adapter] += 1
        self.running[request.request_id] = request

    def _first_waiting(self) -> Request | None:
        """The first request that waits, of those whose adapter may run now.

        Where all places of adapters are taken, one of another adapter waits for one to be free, and with it all
        behind it that have adapters: else those whose adapters run would follow each other for ever. Requests
        without an adapter pass.
        """
        first = self.waiting.first_with_adapter()
        if first is not None and self._lacks_place(first):
            return self.waiting.first_without_adapter()
        return self.waiting.peek() if self.waiting else None

    def _put(self, step: Step, request: Request, left: int) -> int:
        """Put a running request into the step, for as many of its tokens as are `left` of the budget.

        Returns what it takes of that. Without chunked prefill, a prompt that does not fit takes all, so that those
        behind it cannot keep it waiting for ever.
        """
        missing = request.num_missing_tokens
        count = min(missing, left)
        if count < missing and not self.config.enable_chunked_prefill:
            return left
        if count == 0:
            return 0
        self._tables.prepare(request, step)
        request.sound = False
        self._emit(step, request, count)
        end = request.num_computed_tokens + count
        self._tables.publish(request, end)
        if end == request.num_prompt_tokens and count == missing:
            self._prompts_ended.add(request)
        return count

    def _emit(self, step: Step, request: Request, count: int, after: str | None = None) -> None:
        """Tell the executor of the next `count` tokens, and of the blocks that it does not know."""
        if not request.announced:
            request.announced = True
            step.new.append(_new_sequence(request))
        start, end = request.num_computed_tokens, request.num_computed_tokens + count
        first = request.num_blocks_sent
        whole, pooled = end == len(request.token_ids), request.pooling is not None
        step.scheduled.append(
            ScheduledSequence(
                request.request_id,
                request.token_ids[start:end],
                start,
                request.block_ids[first:],
                samples=whole and not pooled,
                allowed=request.grammar.allowed if request.grammar and whole else None,
                pools=whole and pooled,
                samples_after=after,
                first_new_block=first,
            )
        )
        request.num_blocks_sent = len(request.block_ids)

    def _preempt(self, request: Request) -> None:
        """Have a request, with all of its search's beams, give its blocks back and wait in its old place."""
        first = request.unit[0]
        if first.group is not None:
            first.group.begin_round_again()
        self._swapped_out |= {page: block for block, page in self.swap.keep(first.unit, self.pool)}
        self._stop(first)
        for member in first.unit:
            member.waiting = True
        self.waiting.push(first)
        self.preempted.append(first.request_id)
        self.num_preemptions += 1

    def _stop(self, request: Request) -> None:
        for member in request.unit:
            self.drop(member)
        self._num_places -= request.num_places

    def check_integrity(self) -> None:
        """Raise `AssertionError` when the books do not agree with each other."""
        self.pool.check_integrity(r.held_block_ids for r in self.running.values())
        self.swap.check_integrity([member for request in self.waiting for member in request.unit])
        for request in self.running.values():
            assert request.swapped is None, f"{request.request_id} runs and keeps pages in host memory"
            assert not request.waiting, f"{request.request_id} runs and waits"
            done = request.group is not None and request.request_id in request.group.choices
            # One that began beside a sibling has no token of its own before its first step has ended.
            begins = request.in_flight and request.num_output_tokens == 0 and request.group is None
            assert (request.num_missing_tokens == 0) if done else (request.num_missing_tokens > 0 or begins), (
                f"{request.request_id} has {request.num_missing_tokens} tokens to compute"
            )
            assert 0 <= request.num_awaited <= request.num_in_flight, f"{request.request_id} waits for no step"
            known = request.num_known_tokens
            assert [*request.token_ids, LATEST].index(LATEST) == known, f"{request.request_id} has lost a token"
            held = len(request.block_ids) * self.config.block_size
            assert request.num_computed_tokens <= held, f"{request.request_id} has computed more than it holds"
        for request in self.waiting:
            for member in request.unit:
                assert member.waiting, f"{member.request_id} waits and does not know"
                assert not member.block_ids, f"{member.request_id} waits and holds blocks"
        firsts = [r for r in self.running.values() if r is r.unit[0]]
        assert self._num_places == sum(r.num_places for r in firsts), "places are taken by nobody, or not counted"
        assert self._num_places <= self.config.max_running, "more requests run than may"
        assert self.adapters == Counter(r.adapter for r in self.running.values()), "adapters are not counted"
        assert len(self.adapters) - (0 in self.adapters) <= self.config.max_adapters, "too many adapters run"


def _order(request: Request) -> tuple[int, int]:
    return request.order


def _outgrows(request: Request, rotation: RotationByLength) -> bool:
    """Whether it is longer than what its keys are rotated for."""
    return request.rotated_for != rotation.length(request.num_prompt_tokens, request.num_tokens)


def _new_sequence(request: Request) -> NewSequence:
    return NewSequence(
        request.request_id,
        request.num_prompt_tokens,
        request.params,
        request.seed,
        token_ids=list(request.token_ids) if request.params.looks_back else [],
        prompt_logprobs_from=request.num_prompt_logprobs + 1,
        rotated_for=request.rotated_for,
        ranks_allowed=request.group is not None,
        pooling=request.pooling,
        adapter=request.adapter,
        images=tuple(replace(image, data=b"") for image in request.images),
    )
