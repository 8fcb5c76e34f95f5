"""How long the parts of a start take, and what is wrong in them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from quire_engine.loading.errors import CheckpointError
from quire_engine.startup_error import StartupError

log = logging.getLogger(__name__)

OnPhase = Callable[[str, float], None]


class Phases:
    """Times the parts of the start."""

    def __init__(self, on_phase: OnPhase | None) -> None:
        self.seconds: dict[str, float] = {}
        self._on_phase = on_phase

    @contextmanager
    def __call__(self, name: str, reason: str) -> Iterator[None]:
        """Time a part, and turn what is wrong with the user's input in it into a `StartupError`."""
        started = time.monotonic()
        try:
            yield
        except CheckpointError as error:
            raise StartupError(error.reason, str(error)) from error
        except ValueError as error:
            raise StartupError(reason, str(error)) from error
        except ArithmeticError as error:
            raise StartupError(reason, f"a number in config.json is out of all bounds: {error}") from error
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise StartupError("OutOfMemory", f"memory ran out during {name}: {error}") from error
        except RuntimeError as error:
            if "can't allocate memory" not in str(error):  # which is how torch says it on the CPU
                raise
            raise StartupError("OutOfMemory", f"memory ran out during {name}: {error}") from error
        self.seconds[name] = time.monotonic() - started
        log.info("%s: %.2f s", name, self.seconds[name])
        if self._on_phase is not None:
            self._on_phase(name, self.seconds[name])
