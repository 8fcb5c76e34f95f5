"""A rank reads from disk what it computes with, and no more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from quire_engine.distributed.layout import Layout
from quire_engine.distributed.ranks import TensorRanks, build_for
from quire_engine.layers.linear import create_weights
from quire_engine.loading import readers
from quire_engine.loading.checkpoint import Checkpoint
from quire_engine.loading.file_tensor import FileTensor
from quire_engine.loading.staging import Staging
from quire_engine.loading.weights import load_weights
from quire_engine.models.decoder import CausalLM
from quire_engine.models.registry import decoder_spec
from tests.engine.models.checkpoints import FAMILIES, make_model, save


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    model = make_model(FAMILIES["llama"][0], FAMILIES["llama"][1]())
    return Checkpoint.open(str(save(model, tmp_path)))


def read_by(checkpoint: Checkpoint, layout: Layout, rank: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The elements that are read of each tensor."""
    counts: Counter[str] = Counter()

    class Counting(Staging):
        def read(self, stored: FileTensor, where: Sequence[slice], into: torch.Tensor) -> None:
            counts[stored.name] += into.numel()
            super().read(stored, where, into)

    monkeypatch.setattr(readers, "reader_for", Counting)
    spec = decoder_spec(checkpoint.config)
    whole = CausalLM(spec)
    create_weights(whole)
    with build_for(TensorRanks(rank % layout.tensor, layout.tensor), layout.stage(rank)):
        model = CausalLM(spec)
        create_weights(model)
    load_weights(model, checkpoint.directory, spec.naming, whole)
    return counts


def test_tensor_ranks_read_a_part_of_every_matrix_and_together_all_of_it(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = read_by(checkpoint, Layout(), 0, monkeypatch)
    for rank in range(2):
        counts = read_by(checkpoint, Layout(tensor=2), rank, monkeypatch)
        assert counts == {name: size if "norm" in name else size // 2 for name, size in sizes.items()}


def test_stages_read_their_layers_only(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = read_by(checkpoint, Layout(), 0, monkeypatch)
    last, first = (read_by(checkpoint, Layout(pipeline=2), rank, monkeypatch) for rank in range(2))
    assert first | last == sizes
    assert not first.keys() & last.keys()
    assert {"model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"} <= first.keys()
    assert {"lm_head.weight", "model.norm.weight", "model.layers.1.mlp.up_proj.weight"} <= last.keys()
