"""Where the time of steps goes: spans by name, as a table and as a trace that Chrome's viewers read."""

from __future__ import annotations

import json
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from quire_engine.core.step import Step

log = logging.getLogger(__name__)

_NOTHING = nullcontext()
_KINDS = {False: "decoding", True: "with prompts"}


@dataclass(slots=True)
class Span:
    """What one thread did from `begun` to `ended`, in nanoseconds, other spans within it included."""

    name: str
    begun: int
    step: int
    ended: int = 0
    within: int = 0  # nanoseconds of spans within it


class StepProfile:
    """Times the first `num_steps` steps, then logs a table and writes `file`, and costs nothing any more.

    Times are the host's: what a GPU still has to do when a call returns counts where it is waited for. Where steps
    overlap, what is done ahead for the next one counts with the one under way. One thread calls everything.
    """

    def __init__(self, num_steps: int, file: Path | None = None) -> None:
        self.active = num_steps > 0
        self._left, self._file = num_steps, file
        self._spans: list[Span] = []
        self._open: list[Span] = []
        self._has_prompts: list[bool] = []  # of each step
        self._on_end: list[Callable[[], object]] = []

    def span(self, name: str) -> AbstractContextManager[object]:
        """Time what is done within. Nests."""
        return _Timed(self, name) if self.active else _NOTHING

    def begin(self, name: str) -> None:
        if self.active:
            span = Span(name, time.perf_counter_ns(), len(self._has_prompts))
            self._open.append(span)
            self._spans.append(span)

    def end(self) -> None:
        if self._open:
            span = self._open.pop()
            span.ended = time.perf_counter_ns()
            if self._open:
                self._open[-1].within += span.ended - span.begun

    def add(self, parts: Mapping[str, int]) -> None:
        """Take what was timed elsewhere, nanoseconds by name, as spans that end now, one behind the other."""
        if not self._open:
            return
        begun = time.perf_counter_ns() - sum(parts.values())
        for name, nanoseconds in parts.items():
            self._spans.append(Span(name, begun, len(self._has_prompts), begun + nanoseconds))
            self._open[-1].within += nanoseconds
            begun += nanoseconds

    def when_done(self, call: Callable[[], object]) -> None:
        """Have `call` called at the end of the last step that is timed."""
        self._on_end.append(call)

    def end_step(self, step: Step) -> None:
        """All spans since the step before belong to this one. The last one has everything told."""
        if not self.active:
            return
        self._has_prompts.append(any(len(s.token_ids) > 1 for s in step.scheduled))
        self._left -= 1
        if self._left > 0:
            return
        self.active = False
        for call in self._on_end:
            call()
        log.info("%s", self.table())
        if self._file is not None:
            try:
                self._file.write_text(json.dumps({"traceEvents": self.trace()}))
            except OSError as error:
                log.warning("the trace of the steps could not be written: %s", error)
            else:
                log.info("trace of the steps, for ui.perfetto.dev or chrome://tracing: %s", self._file)
        self._spans.clear()

    def table(self) -> str:
        """Milliseconds a step by name, without spans within, for steps that only decode and for those with prompts."""
        sums: dict[str, dict[bool, int]] = defaultdict(lambda: {False: 0, True: 0})
        for span in self._spans:
            if span.ended and span.step < len(self._has_prompts):
                sums[span.name][self._has_prompts[span.step]] += span.ended - span.begun - span.within
        columns = [kind for kind in _KINDS if kind in self._has_prompts]
        numbers = {kind: self._has_prompts.count(kind) for kind in columns}
        totals = {kind: sum(times[kind] for times in sums.values()) or 1 for kind in columns}
        heads = [f"{numbers[kind]} steps {_KINDS[kind]}" for kind in columns]
        lines = [f"{'milliseconds a step':<22}" + "".join(f"{head:>28}" for head in heads)]
        for name, times in sorted(sums.items(), key=lambda item: -sum(item[1].values())):
            cells = (f"{times[k] / numbers[k] / 1e6:.3f} ({times[k] / totals[k]:6.1%})" for k in columns)
            lines.append(f"{name:<22}" + "".join(f"{cell:>28}" for cell in cells))
        lines.append(f"{'all':<22}" + "".join(f"{totals[k] / numbers[k] / 1e6:>19.3f}         " for k in columns))
        return "\n".join(line.rstrip() for line in lines)

    def trace(self) -> list[dict[str, object]]:
        """Complete events of the Trace Event Format, in microseconds."""
        return [
            {
                "name": span.name,
                "ph": "X",
                "ts": span.begun / 1000,
                "dur": (span.ended - span.begun) / 1000,
                "pid": os.getpid(),
                "tid": 0,
                "args": {"step": span.step},
            }
            for span in self._spans
            if span.ended
        ]


class _Timed:
    __slots__ = ("_name", "_profile")

    def __init__(self, profile: StepProfile, name: str) -> None:
        self._profile, self._name = profile, name

    def __enter__(self) -> None:
        self._profile.begin(self._name)

    def __exit__(self, *_: object) -> None:
        self._profile.end()


NO_PROFILE = StepProfile(0)
