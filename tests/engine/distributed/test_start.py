"""How the ranks of a model are started, and what holds before any of them is."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace

import pytest
import torch

from quire_engine.config import EngineConfig
from quire_engine.distributed.launch import launch
from quire_engine.distributed.layout import Layout
from quire_engine.distributed.leader import Leader
from quire_engine.distributed.messages import RankOptions
from quire_engine.distributed.watch import RanksLostError
from quire_engine.models.registry import decoder_spec
from quire_engine.starting.model_choice import check_layout
from tests.engine.models.checkpoints import FAMILIES

CONFIG = EngineConfig(model="m", tensor_parallel_size=2)
_RANK = """
from quire_engine.distributed.launch import die_with_parent
die_with_parent(0)
print("ready", flush=True)
import time
time.sleep(60)
"""


def test_a_model_too_large_for_any_machine_is_looked_at_without_memory() -> None:
    _, config = FAMILIES["llama"]
    spec = decoder_spec(config().to_dict() | {"architectures": ["LlamaForCausalLM"]})
    check_layout(Layout(2), replace(spec, shape=replace(spec.shape, vocab_size=1 << 50)))


def test_a_rank_that_ends_before_it_is_there_is_told_of_and_nothing_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("quire_engine.distributed.leader.launch", lambda _: subprocess.Popen(["false"]))
    leader = Leader(CONFIG)
    with pytest.raises(RanksLostError, match="rank 1 ended with exit code 1"):
        leader.gather("m", torch.device("cpu"))
    closing = threading.Thread(target=leader.close, args=("EngineFailed: a rank is gone",), daemon=True)
    closing.start()
    closing.join(20)
    assert not closing.is_alive()


def test_a_rank_outlives_the_thread_that_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = subprocess.Popen

    def start(_: list[str], stdin: int) -> subprocess.Popen[bytes]:
        return real([sys.executable, "-c", _RANK], stdin=stdin, stdout=subprocess.PIPE)

    monkeypatch.setattr(subprocess, "Popen", start)
    launched: list[subprocess.Popen[bytes]] = []

    def ask() -> None:
        launched.append(launch(RankOptions(CONFIG, 1, "127.0.0.1", 1, 0)))
        assert launched[0].stdout is not None
        launched[0].stdout.readline()

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    (process,) = launched
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.kill()
    assert process.wait() == -9
