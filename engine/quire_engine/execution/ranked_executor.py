"""Runs steps on all ranks at once."""

from __future__ import annotations

import weakref
from collections import deque

from quire_engine.core.adapters import StoredAdapter
from quire_engine.core.step import Step, StepResult
from quire_engine.distributed.leader import Leader
from quire_engine.distributed.messages import Adopt, Prepare, Record, Unload
from quire_engine.execution.model_runner import ModelRunner
from quire_engine.failure import failure_of

_MESSAGE_BYTES = 1 << 32  # that a message's field has fewer than


class RankedExecutor:
    """Sends each step to the other ranks and runs this one's part, where the results are.

    As many steps as there are stages may be under way: each stage works on another one.
    """

    def __init__(self, runner: ModelRunner, leader: Leader) -> None:
        self.depth = leader.layout.pipeline
        self._runner = runner
        self._leader = leader
        self._in_flight: deque[Step] = deque()
        self._close = weakref.finalize(self, _part, runner, leader)

    def submit(self, step: Step) -> None:
        """Have the other ranks begin with a step. Raises `RanksLostError`."""
        self._leader.send(step)
        self._in_flight.append(step)

    def collect(self) -> StepResult:
        """The result of the step that was submitted first: runs this rank's part of it. Raises `RanksLostError`."""
        try:
            return self._runner.execute(self._in_flight.popleft())
        except Exception as error:
            blamed = self._leader.blame(error)
            self._close.detach()
            _part(self._runner, self._leader, failure_of(blamed))
            raise blamed from error

    def record_decodes(self, room: int) -> int:
        """As `ModelRunner` does, on all ranks. Raises `RanksLostError`."""
        self._leader.tell(Record(room))
        return self._runner.record_decodes(room)

    def forget_recordings(self) -> None:
        """This rank's. Others forget theirs when they are released."""
        self._runner.forget_recordings()

    def prepare_adapter(self, number: int, adapter: StoredAdapter) -> None:
        """Raises `RanksLostError` too, and `ValueError` for one beyond a message."""
        if len(adapter.content) >= _MESSAGE_BYTES:
            raise ValueError(
                f"the adapter has {len(adapter.content)} bytes: less than {_MESSAGE_BYTES} can be sent to other "
                "ranks, so save it in bfloat16, or with a smaller rank"
            )
        self._leader.tell(Prepare(number, adapter))
        self._runner.prepare_adapter(number, adapter)

    def adopt_adapter(self, number: int) -> None:
        """No step under way is computed with it. Others may still prepare it, and are waited for by the next step."""
        self._leader.tell(Adopt(number))
        self._runner.adopt_adapter(number)

    def unload_adapter(self, number: int) -> None:
        """Of steps under way, only parts that nobody waits for any more may be computed with it."""
        self._leader.tell(Unload(number))
        self._runner.unload_adapter(number)

    def close(self) -> None:
        """End the other ranks. So does forgetting this, and the end of the process."""
        self._close()

    def execute(self, step: Step) -> StepResult:
        self.submit(step)
        return self.collect()


def _part(runner: ModelRunner, leader: Leader, cause: str | None = None) -> None:
    runner.forget_recordings()
    leader.close(cause)
