"""A rank reads from disk what it computes with, and no more."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from quire_engine.distributed.layout import Layout
from quire_engine.distributed.ranks import TensorRanks, build_for
from quire_engine.layers.linear import create_weights
from quire_engine.loading import weights
from quire_engine.loading.checkpoint import Checkpoint
from quire_engine.models.decoder import CausalLM
from quire_engine.models.registry import decoder_spec
from tests.engine.models.checkpoints import FAMILIES, make_model, save


@dataclass
class Reading:
    """In the place of safetensors' `safe_open`: counts the elements that are read of each tensor."""

    counts: dict[str, int] = field(default_factory=dict)

    def __call__(self, *args: Any, **options: Any) -> Any:
        opened, counts = self.opened(*args, **options), self.counts

        class File:
            def __enter__(self) -> File:
                self.tensors = opened.__enter__()
                return self

            def __exit__(self, *error: Any) -> None:
                opened.__exit__(*error)

            def get_slice(self, name: str) -> Any:
                stored = self.tensors.get_slice(name)

                class Slice:
                    get_shape = staticmethod(stored.get_shape)

                    def __getitem__(self, where: Any) -> torch.Tensor:
                        part: torch.Tensor = stored[where]
                        counts[name] = counts.get(name, 0) + part.numel()
                        return part

                return Slice()

        return File()

    opened = staticmethod(weights.safe_open)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    model = make_model(FAMILIES["llama"][0], FAMILIES["llama"][1]())
    return Checkpoint.open(str(save(model, tmp_path)))


def read_by(checkpoint: Checkpoint, layout: Layout, rank: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    reading, spec = Reading(), decoder_spec(checkpoint.config)
    monkeypatch.setattr(weights, "safe_open", reading)
    whole = CausalLM(spec)
    create_weights(whole)
    with build_for(TensorRanks(rank % layout.tensor, layout.tensor), layout.stage(rank)):
        model = CausalLM(spec)
        create_weights(model)
    weights.load_weights(model, checkpoint.directory, spec.naming, whole)
    return reading.counts


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
