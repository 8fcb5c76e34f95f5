"""The core of the engine: requests go in, steps turn, tokens come out. No torch here."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections import Counter, deque
from dataclasses import replace

from quire_engine.core.adapters import AdapterBook, AdapterFiles, AdapterLoad, Adapting
from quire_engine.core.beam_group import BeamGroup
from quire_engine.core.core_config import CoreConfig
from quire_engine.core.grammar import Grammars, GrammarState, PendingGrammar, TooSlowError, needs_grammar
from quire_engine.core.image_handover import hand_over_images, leave_computed_images, leave_images
from quire_engine.core.image_preparation import ImagePreparation
from quire_engine.core.messages import EngineOutput, EngineRequest, EngineStats, ErrorKind, FinishReason
from quire_engine.core.pipeline import Pipeline, pipeline_of
from quire_engine.core.preparation_queue import PreparationQueue
from quire_engine.core.randomness import nth_seed
from quire_engine.core.refusal import RefusedError, kind_of
from quire_engine.core.request import Request
from quire_engine.core.request_check import check_request, with_right_types
from quire_engine.core.scheduler import Scheduler
from quire_engine.core.step import NO_TOKEN, Closing, Executor, Step, StepResult, TokenLogprobs
from quire_engine.core.step_profile import NO_PROFILE, StepProfile
from quire_engine.sampling_params import SamplingParams

log = logging.getLogger(__name__)

_PREPARATION_SECONDS = 0.02
_NOTHING_FITS = "structured_outputs: none of the tokens that the request allows continues the answer"
_NOT_FINITE = (
    "the model gave no finite {what} for this request: look whether its checkpoint holds NaN or infinite weights, and "
    "whether --dtype reaches as far as its numbers do (float16 ends at 65504, bfloat16 and float32 do not)"
)


class EngineCore:
    """Turns requests into tokens. One thread calls everything."""

    def __init__(
        self,
        executor: Executor | Pipeline,
        config: CoreConfig,
        grammars: Grammars | None = None,
        profile: StepProfile = NO_PROFILE,
        images: ImagePreparation | None = None,
        adapter_files: AdapterFiles | None = None,
    ) -> None:
        """`images` prepares those of prompts, and `adapter_files` reads adapters, for an executor that takes any."""
        self.config = config
        self.profile = profile
        self._executor = executor
        self._pipeline = pipeline_of(executor)
        self._in_flight: deque[tuple[Step, list[Request]]] = deque()
        self._scheduler = Scheduler(config)
        self._grammars = grammars
        self._images = images
        self._adapter_files = adapter_files
        self._adapters = AdapterBook(config.adapter_room)
        self._preparing = PreparationQueue()
        self._requests: dict[str, Request] = {}
        self._refused: list[EngineOutput] = []
        self._num_arrived = 0
        self._num_steps = 0
        self._num_scheduled_tokens = 0
        self._within_step = False

    def add_request(self, request: EngineRequest) -> None:
        """Queue a request. One that can never run is answered by the next step with an error.

        Raises `RuntimeError` once a step was left by an exception: pages may be said to hold what nobody wrote.
        """
        self._check_whole()
        try:
            request = with_right_types(request)
            sibling = self._find_sibling(request)
            check_request(request, self.config, sibling)
            if request.request_id in self._requests:
                raise ValueError(
                    f"request_id {request.request_id!r} is of a request that is still there: use a new one"
                )
            queued = self._to_request(request, sibling)
            grammar = self._compile(request.params) if needs_grammar(request.params) else None
            self._prepare_images(queued)
            if grammar is None and queued.pending_images is None:
                self._scheduler.add(queued)
            else:
                self._preparing.add(queued, grammar)
            self._requests[queued.request_id] = queued
            self._adapters.use(queued.adapter)
        except ValueError as error:
            self._refuse(request.request_id, str(error), kind_of(error))
        except Exception as error:
            # Whatever is wrong with one request, the others go on.
            log.exception("request %s could not be prepared", request.request_id)
            message = f"the request could not be prepared: {type(error).__name__}: {error}"
            self._refuse(request.request_id, message, "fault")

    def abort(self, request_ids: list[str]) -> None:
        """End requests without an output and free their blocks at once. Unknown ids are passed over."""
        if self._within_step:
            return  # it was left by an exception, and nothing will run any more
        for request_id in request_ids:
            request = self._requests.get(request_id)
            if request is None:
                continue
            if request_id in self._preparing:
                self._preparing.remove(request_id)
            else:
                self._scheduler.remove(request)
            self._forget(request)
        self._refused = [output for output in self._refused if output.request_id not in request_ids]

    def load_adapter(self, name: str, path: str, *, replace_it: bool = False) -> None:
        """Have requests choose the adapter in the folder `path` by `name`.

        With `replace_it` requests go on with one of that name. Raises `ValueError`, and leaves all as it was.
        """
        load = self.begin_load(name, path, replace_it=replace_it)
        load.prepare()
        self.end_load(load)

    def begin_load(self, name: str, path: str, *, replace_it: bool = False) -> AdapterLoad:
        """As `load_adapter`, up to where the disk is waited for: have it prepared, in any thread, and end the load."""
        self._check_whole()
        if self._adapter_files is None or not isinstance(self._executor, Adapting):
            raise ValueError("adapters are not served: start with --enable-lora")
        number = self._adapters.expect(name, replace_it=replace_it)
        return AdapterLoad(name, number, path, self._adapter_files, self._executor, replace_it=replace_it)

    def end_load(self, load: AdapterLoad) -> None:
        """Take in what was prepared. Raises as `load_adapter`."""
        self._adapters.expect_no_more(load)
        if load.name in self._adapters:
            self.unload_adapter(load.name)
        self._adapters.add(load.name, load.number)

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter. Requests that run with it end as they would. Raises `ValueError` where there is none."""
        self._adapters.number(name)
        self._drop_adapters(self._adapters.remove(name))

    def has_work(self) -> bool:
        return bool(self._requests or self._refused or self._in_flight)

    def step(self) -> list[EngineOutput]:
        """One turn: schedule, execute, update. Returns what each request gained.

        Where stages share the layers, it schedules until each has a step, and updates by the first that ends. Where
        the executor feeds back, it schedules the next step while the device works on the one before.

        Where all requests wait for their grammars and images, it waits a little with them. Raises as `add_request`.
        """
        self._check_whole()
        self._within_step = True
        outputs = self._turn()
        self._within_step = False
        return outputs

    def close(self) -> None:
        """End the executor's other processes, where it has any, once the steps under way have ended."""
        with contextlib.suppress(Exception):  # what is wrong with the device has been said, or nobody asks any more
            while self._in_flight and not self._within_step:
                self._in_flight.popleft()
                self._pipeline.collect()
        if isinstance(self._executor, Closing):
            self._executor.close()

    def stats(self) -> EngineStats:
        scheduler = self._scheduler
        return EngineStats(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting) + len(self._preparing),
            num_deferred=len(self._preparing),
            num_swapped=scheduler.swap.num_requests,
            kv_cache_usage=scheduler.pool.num_held / scheduler.pool.num_blocks,
            swap_usage=scheduler.swap.usage,
            num_preemptions=scheduler.num_preemptions,
            num_swaps=scheduler.swap.num_swaps,
            prefix_cache_queries=scheduler.prefix_cache_queries,
            prefix_cache_hits=scheduler.prefix_cache_hits,
            num_steps=self._num_steps,
            num_scheduled_tokens=self._num_scheduled_tokens,
            running_adapters=self._adapters.names(scheduler.adapters),
            waiting_adapters=self._adapters.names(scheduler.waiting.adapters),
        )

    def check_integrity(self) -> None:
        """Raise `AssertionError` when requests and blocks do not agree."""
        scheduler = self._scheduler
        scheduler.check_integrity()
        under_way = [
            (request, scheduled)
            for step, requests in self._in_flight
            for scheduled, request in zip(step.scheduled, requests, strict=True)
        ]
        times, awaited = Counter(r for r, _ in under_way), Counter(r for r, s in under_way if s.samples)
        beside = {r for r, s in under_way if s.samples_after is not None}
        for request in scheduler.running.values():
            assert request.num_in_flight == times[request], f"{request.request_id} is in a step, or says so"
            if request.runs_ahead:
                assert request.num_awaited == awaited[request], f"{request.request_id} waits for no token"
            elif request.in_flight:
                nothing_left = request.num_missing_tokens == 0
                assert nothing_left == (request in beside), f"{request.request_id} has nothing to compute"
        known = {*self._preparing} | {r.unit[0].request_id for r in (*scheduler.running.values(), *scheduler.waiting)}
        assert known == set(self._requests), f"lost or left over: {known ^ set(self._requests)}"

    def _turn(self) -> list[EngineOutput]:
        self._take_prepared()
        refused, self._refused = self._refused, []
        self._num_scheduled_tokens = 0
        if len(self._preparing) == len(self._requests) and not self._in_flight:
            if not refused:
                self._preparing.wait(_PREPARATION_SECONDS)
            return refused
        while len(self._in_flight) < self._pipeline.depth and (step := self._schedule()).scheduled:
            self._submit(step)
        if not self._in_flight:
            raise RuntimeError(f"{len(self._requests)} requests wait and none can be scheduled: this is a bug in Quire")
        step, requests = self._in_flight.popleft()
        with self.profile.span("execute, the rest"):
            result = self._pipeline.collect()
        self._num_steps += 1
        self._num_scheduled_tokens = step.num_tokens
        with self.profile.span("update"):
            outputs = self._update(step, requests, result)
        self.profile.end_step(step)
        return refused + outputs

    def _schedule(self) -> Step:
        with self.profile.span("schedule"):
            step = self._scheduler.schedule()
        for request_id in self._scheduler.preempted:
            request = self._requests[request_id]
            if request.pending_images is None:  # they were computed, and may have to be again
                self._prepare_images(request)
        return step

    def _check_whole(self) -> None:
        if self._within_step:
            raise RuntimeError("the engine was interrupted within a step: build a new LLM")

    def _submit(self, step: Step) -> None:
        requests = [self._scheduler.running[s.request_id] for s in step.scheduled]
        self._hand_over_images(step)
        now = time.monotonic()
        for sequence, request in zip(step.scheduled, requests, strict=True):
            request.depart(sequence)
            if request.started_at is None:
                request.started_at = now
        with self.profile.span("execute, the rest"):
            self._pipeline.submit(step)
        self._in_flight.append((step, requests))

    def _update(self, step: Step, requests: list[Request], result: StepResult) -> list[EngineOutput]:
        outputs: list[EngineOutput] = []
        groups: dict[str, BeamGroup] = {}
        running, prompt_logprobs = self._scheduler.running, result.prompt_logprobs
        for sequence, request, new_tokens in zip(step.scheduled, requests, result.token_ids, strict=True):
            request.num_in_flight -= 1
            if running.get(request.request_id) is not request:
                continue  # it was aborted meanwhile, or has ended a token before
            if not request.runs_ahead:
                request.num_computed_tokens = sequence.end
                if request.images:
                    leave_computed_images(request.unit)
            of_prompt = prompt_logprobs.get(request.request_id)
            if NO_TOKEN in new_tokens or (of_prompt and not _are_numbers(of_prompt)):
                outputs.append(self._fail(request, "logits"))
                continue
            if sequence.samples or sequence.pools:
                request.num_sound = sequence.end
            request.sound = request.num_sound == sequence.end and not request.in_flight
            if request.group is not None:
                if sequence.samples:
                    (request.group.choices[request.request_id],) = result.logprobs[request.request_id]
                    groups[request.unit[0].request_id] = request.group
                continue
            if sequence.pools:
                outputs.append(self._end_pooled(request, result.embeddings[request.request_id]))
                continue
            if not new_tokens and of_prompt is None:
                continue
            output = self._append(request, new_tokens)
            logprobs = result.logprobs.get(request.request_id)
            if logprobs is not None:
                output.logprobs = logprobs[: len(output.new_token_ids)]
            if of_prompt is not None:
                output.prompt_logprobs = of_prompt
                request.num_prompt_logprobs += len(of_prompt)
            outputs.append(output)
        for group in groups.values():
            if group.is_complete:
                outputs += self._search_on(group)
        return outputs

    def _fail(self, request: Request, what: str) -> EngineOutput:
        """End a request, with all of its search, for which the model gave no finite `what`."""
        first, request.sound, request.num_sound = request.unit[0], False, 0
        message = _NOT_FINITE.format(what=what)
        log.error("request %s: %s", first.request_id, message)
        self._scheduler.fail(first)
        self._forget(first)
        return EngineOutput(first.request_id, [], "error", error=message, error_kind="fault")

    def _end_pooled(self, request: Request, embedding: list[float]) -> EngineOutput:
        if not math.isfinite(sum(embedding)):
            return self._fail(request, "embedding")
        self._scheduler.remove(request)
        self._forget(request)
        cached = request.num_cached_tokens or 0
        return EngineOutput(
            request.request_id, [], "stop", num_cached_tokens=cached, started_at=request.started_at, embedding=embedding
        )

    def _search_on(self, group: BeamGroup) -> list[EngineOutput]:
        """End a round of a beam search. The last one gives out the answers."""
        request, error = group.members[0], ""
        try:
            group.end_round(self._scheduler.fork, self._scheduler.drop)
        except TooSlowError as slow:
            error = str(slow)
        if not group.search.done and not error:
            return []
        self._scheduler.remove(request)
        self._forget(request)
        answers = group.answers()
        if error or not answers:
            return [EngineOutput(request.request_id, [], "error", error=error or group.fault or _NOTHING_FITS)]
        cached = request.num_cached_tokens or 0
        reason, started = answers[0].finish_reason, request.started_at
        return [
            EngineOutput(request.request_id, [], reason, num_cached_tokens=cached, started_at=started, beams=answers)
        ]

    def _append(self, request: Request, new_tokens: list[int]) -> EngineOutput:
        """Give a request its new tokens, up to the first that ends it."""
        output = EngineOutput(request.request_id, [], num_cached_tokens=request.num_cached_tokens or 0)
        if request.num_output_tokens == 0:
            output.started_at = request.started_at
        for token in new_tokens:
            request.take(token)
            output.new_token_ids.append(token)
            output.finish_reason, output.stop_reason = self._finish(request, token)
            if request.grammar is not None:
                _follow(request.grammar, token, output)
            if output.finish_reason is not None:
                self._scheduler.remove(request)
                self._forget(request)
                return output
        if request.in_flight:
            self._scheduler.publish(request)
        return output

    def _finish(self, request: Request, token: int) -> tuple[FinishReason | None, int | None]:
        params, known = request.params, request.num_known_tokens
        if known - request.num_prompt_tokens > params.min_tokens:
            if token in self.config.eos_token_ids and not params.ignore_eos:
                return "stop", None
            if token in params.stop_token_ids:
                return "stop", token
        if known >= request.longest:
            return "length", None
        return None, None

    def _forget(self, request: Request) -> None:
        del self._requests[request.request_id]
        leave_images(request)
        self._drop_adapters(self._adapters.release(request.adapter))

    def _drop_adapters(self, numbers: list[int]) -> None:
        for number in numbers:
            assert isinstance(self._executor, Adapting)  # it has loaded them
            self._executor.unload_adapter(number)

    def _compile(self, params: SamplingParams) -> PendingGrammar:
        if self._grammars is None:
            raise ValueError(
                "structured_outputs, or stop beside use_beam_search, is set and this engine follows no text: leave it "
                "out"
            )
        return self._grammars.compile(params)

    def _prepare_images(self, request: Request) -> None:
        """Begin to prepare those of a request's images that have tokens to compute, as far as is known."""
        if self._images is None or not request.images:
            return
        known = self._scheduler.num_known_tokens(request)
        wanted = [image for image in request.images if image.end > known]
        if wanted:
            request.pending_images = self._images.prepare(wanted)

    def _hand_over_images(self, step: Step) -> None:
        """Give the executor the images of the requests that are new to it, and end those that cannot go on."""
        if self._images is None:
            return
        wrong = hand_over_images(self._images, step, self._scheduler.running, self.config.block_size)
        for request, message in wrong.items():
            self._scheduler.fail(request)
            self._forget(request)
            self._refuse(request.request_id, message, "fault")

    def _take_prepared(self) -> None:
        """Schedule the requests whose grammars and images have come."""
        if not self._preparing:
            return
        ready, wrong = self._preparing.take_ready()
        for request in ready:
            self._scheduler.add(request)
        for request_id, (message, kind) in wrong.items():
            self._forget(self._requests[request_id])
            self._refuse(request_id, message, kind)

    def _find_sibling(self, request: EngineRequest) -> Request | None:
        """The request of `sibling_id`. Raises `ValueError` where there is none: its own error, if it was refused."""
        name = request.sibling_id
        if name is None:
            return None
        if request.prompt_token_ids or request.images or request.cache_salt is not None or request.adapter is not None:
            raise ValueError(
                f"sibling_id is {name!r}, whose prompt, images, cache_salt and adapter it has: leave those out"
            )
        sibling = self._requests.get(name)
        if sibling is None:
            refused = next((o for o in reversed(self._refused) if o.request_id == name), None)
            if refused is None:
                raise ValueError(f"sibling_id is {name!r}, which is no request that is there: send the prompt")
            raise RefusedError(refused.error or "", refused.error_kind)
        return sibling

    def _to_request(self, request: EngineRequest, sibling: Request | None) -> Request:
        seed = request.params.seed
        own = 0 if request.adapter is None else self._adapters.number(request.adapter)
        self._num_arrived += 1
        prompt = request.prompt_token_ids if sibling is None else sibling.token_ids[: sibling.num_prompt_tokens]
        images = request.images if sibling is None else sibling.images
        queued = Request(
            request.request_id,
            list(prompt),
            len(prompt),
            replace(request.params, structured_outputs=None),  # the executor needs no grammar
            nth_seed(self.config.seed, self._num_arrived) if seed is None else seed,
            order=(request.priority if self.config.use_priority else 0, self._num_arrived),
            cache_salt=request.cache_salt if sibling is None else sibling.cache_salt,
            pooling=request.pooling,
            images=images,
            adapted=bool(images) and self.config.images is not None and self.config.images.adapted,
            adapter=own if sibling is None else sibling.adapter,
            sibling=sibling,
            longest=self.config.longest(request.params, len(prompt)),
            ahead=self.config.runs_ahead and not (request.pooling or request.params.needs_tokens),
        )
        if request.params.use_beam_search:
            ends, longest = self.config.ends(request.params), self.config.max_beam_tokens(request.params)
            BeamGroup.lead(queued, ends, longest, by_text=needs_grammar(request.params))
        return queued

    def _refuse(self, request_id: str, message: str, kind: ErrorKind) -> None:
        self._refused.append(EngineOutput(request_id, [], "error", error=message, error_kind=kind))


def _are_numbers(logprobs: list[TokenLogprobs]) -> bool:
    return not any(math.isnan(entry.logprob) for entry in logprobs)


def _follow(grammar: GrammarState, token: int, output: EngineOutput) -> None:
    """Move the grammar past a token, which may be its last one, or say that the answer cannot go on."""
    try:
        allowed = grammar.allowed
        if allowed is not None and not allowed[token // 8] >> token % 8 & 1:
            raise ValueError(_NOTHING_FITS)
        if output.finish_reason == "stop":
            return
        grammar.advance(token)
    except ValueError as error:
        output.finish_reason, output.stop_reason, output.error = "error", None, str(error)
        return
    if grammar.finished:
        output.finish_reason, output.ended_by_grammar = "stop", True
