"""A model that transformers runs comes to its device tensor by tensor."""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from quire_engine.loading.transformers_weights import load_transformers
from quire_engine.models.transformers_backend.spec import TransformersSpec
from tests.engine.models.checkpoints import SIZES, save

WIDE = LlamaConfig(**SIZES | {"vocab_size": 4096, "hidden_size": 512, "intermediate_size": 4096})


def own_memory() -> int:
    """Bytes of this process that no file backs."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("RssAnon:"))
    return int(line.split()[1]) << 10


def test_a_model_for_another_device_is_never_whole_in_the_hosts_memory(tmp_path: Path) -> None:
    model = LlamaForCausalLM(WIDE)
    served = sum(parameter.numel() for parameter in model.parameters()) * 2
    save(model, tmp_path)
    del model
    spec = TransformersSpec.from_directory(tmp_path, WIDE.to_dict(), trust_remote_code=False)

    def load() -> torch.device:
        # the only device beside the CPU that every machine has
        loaded = load_transformers(spec, tmp_path, torch.bfloat16, torch.device("meta"), trust_remote_code=False)
        return next(loaded.parameters()).device

    load()  # imports, and whatever else is made once
    ctypes.CDLL(None).malloc_trim(0)  # else what was freed is taken again, and nothing grows
    before, highest, is_over = own_memory(), [0], threading.Event()

    def watch() -> None:
        while not is_over.wait(0.001):
            highest[0] = max(highest[0], own_memory() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    device = load()
    is_over.set()
    watcher.join()
    assert device.type == "meta"
    assert highest[0] < served // 3
