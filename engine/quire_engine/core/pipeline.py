"""Steps under way: one at a time, as many as a model's stages can work on at once, or the next one as well."""

from __future__ import annotations

from collections import deque
from typing import Protocol, runtime_checkable

from quire_engine.core.step import Executor, Step, StepResult


@runtime_checkable
class Pipeline(Protocol):
    """Runs steps on a model, each begun before the results of those before it are there.

    Everywhere steps run in the order in which they were submitted: a block may be given to a later step while an
    earlier one still has to write to it, and a page filled by an earlier one may be read by a later one.

    One that feeds back, for a scheduler that `runs_ahead`, keeps what a sequence last sampled and takes it where a
    later step has `LATEST`. Then steps under way may have a sequence in common.
    """

    depth: int  # steps that may be under way

    def submit(self, step: Step) -> None: ...

    def collect(self) -> StepResult:
        """The result of the step that was submitted first, of those under way: waits for it."""
        ...


class OneStep:
    """An executor as a pipeline of one step."""

    depth = 1

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self._submitted: deque[Step] = deque()

    def submit(self, step: Step) -> None:
        self._submitted.append(step)

    def collect(self) -> StepResult:
        return self.executor.execute(self._submitted.popleft())


def pipeline_of(executor: Executor | Pipeline) -> Pipeline:
    return executor if isinstance(executor, Pipeline) else OneStep(executor)
