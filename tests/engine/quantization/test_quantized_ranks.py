"""Ranks that share a quantized layer compute together what one computes alone, each from its own part of the files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import linear

from quire_engine.distributed.ranks import TensorRanks, build_for
from quire_engine.layers.linear import ColumnLinear, RowLinear, Rows, create_weights, finish_weights
from quire_engine.loading.errors import CheckpointError
from quire_engine.loading.weights import load_weights, stored_tensors
from quire_engine.memory_plan.quantization import quantization_of
from quire_engine.models.naming import LLAMA_NAMES, Naming, Source
from quire_engine.quantization.choice import methods_for, naming_with
from tests.engine.quantization.formats import FORMATS, Format

HEADS, KV_HEADS, HEAD_DIM, HIDDEN, INNER = 8, 2, 32, 96, 256
ROWS = {"q_proj": HEADS * HEAD_DIM, "k_proj": KV_HEADS * HEAD_DIM, "v_proj": KV_HEADS * HEAD_DIM}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        heads, kv_heads = Rows(HEADS, HEAD_DIM), Rows(KV_HEADS, HEAD_DIM)
        self.qkv = ColumnLinear(HIDDEN, {"q_proj": heads, "k_proj": kv_heads, "v_proj": kv_heads}, bias=True)
        self.down = RowLinear(Rows(INNER), HIDDEN, bias=True)


def save_block(directory: Path, form: Format) -> dict[str, torch.Tensor]:
    """Write the files. Gives the weights that are meant, and the biases."""
    generator = torch.Generator().manual_seed(0)
    shapes = {name: (rows, HIDDEN) for name, rows in ROWS.items()} | {"down": (HIDDEN, INNER)}
    means, stored = {}, {}
    for name, shape in shapes.items():
        packed, means[f"{name}.weight"] = form.pack(torch.randn(shape, generator=generator))
        stored |= {f"{name}.{end}": tensor.contiguous() for end, tensor in packed.items()}
        means[f"{name}.bias"] = stored[f"{name}.bias"] = torch.randn(shape[0], generator=generator)
    save_file(stored, directory / "model.safetensors")
    return means


def load(directory: Path, form: Format, ranks: TensorRanks, naming: Naming = LLAMA_NAMES) -> Block:
    quantization = quantization_of({"quantization_config": form.config})
    assert quantization is not None
    with build_for(ranks):
        block = Block()
    create_weights(block, methods_for(quantization, stored_tensors(directory, naming)))
    load_weights(block, directory, naming_with(quantization, naming))
    finish_weights(block)
    return block


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("form", FORMATS)
def test_the_ranks_results_together_are_the_whole_layers(tmp_path: Path, form: str, size: int) -> None:
    means = save_block(tmp_path, FORMATS[form])
    blocks = [load(tmp_path, FORMATS[form], TensorRanks(rank, size)) for rank in range(size)]
    x, inner = torch.randn(5, HIDDEN), torch.randn(5, INNER)
    parts = [block.qkv.split(block.qkv(x)) for block in blocks]
    for i, name in enumerate(ROWS):
        own = [part[i] for part in parts]
        if name != "q_proj" and size > KV_HEADS:  # heads that several ranks hold alike
            assert torch.equal(own[0], own[1])
            own = own[:: size // KV_HEADS]
        whole = linear(x, means[f"{name}.weight"], means[f"{name}.bias"])
        torch.testing.assert_close(torch.cat(own, -1), whole, atol=1e-4, rtol=1e-5)
    shares = inner.chunk(size, dim=-1)
    summed = sum(block.down.method.multiply(block.down, x, None) for block, x in zip(blocks, shares, strict=True))
    torch.testing.assert_close(summed, linear(inner, means["down.weight"]), atol=1e-4, rtol=1e-5)


def save_fused(directory: Path, form: Format) -> tuple[torch.Tensor, Naming]:
    """A block whose q, k and v are stored as one: the weight that is meant, and the names."""
    generator = torch.Generator().manual_seed(0)
    total = sum(ROWS.values())
    packed, means = form.pack(torch.randn(total, HIDDEN, generator=generator))
    down, _ = form.pack(torch.randn(HIDDEN, INNER, generator=generator))
    stored = {f"all.{end}": tensor for end, tensor in packed.items()} | {"all.bias": torch.zeros(total)}
    stored |= {f"down.{end}": tensor for end, tensor in down.items()} | {"down.bias": torch.zeros(HIDDEN)}
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, directory / "model.safetensors")
    starts = {"q_proj": 0, "k_proj": ROWS["q_proj"], "v_proj": ROWS["q_proj"] + ROWS["k_proj"]}

    def source(name: str) -> Source:
        part, _, kind = name.rpartition(".")
        if part not in starts:
            return Source(name)
        return Source(f"all.{kind}", torch.arange(starts[part], starts[part] + ROWS[part]))

    return means, Naming(source)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("form", [form for form in FORMATS if "DeepSeek" not in form])
def test_layers_that_the_checkpoint_has_as_one_are_taken_apart(tmp_path: Path, form: str, size: int) -> None:
    means, naming = save_fused(tmp_path, FORMATS[form])
    x = torch.randn(3, HIDDEN)
    blocks = [load(tmp_path, FORMATS[form], TensorRanks(rank, size), naming) for rank in range(size)]
    parts = [block.qkv.split(block.qkv(x)) for block in blocks]
    together = torch.cat([torch.cat([part[i] for part in parts], -1) for i in range(3)], -1)
    torch.testing.assert_close(together, linear(x, means), atol=1e-4, rtol=1e-5)


def test_layers_stored_as_one_with_a_scale_across_them_are_refused(tmp_path: Path) -> None:
    form = FORMATS["fp8 by blocks as large as DeepSeek's"]
    _, naming = save_fused(tmp_path, form)
    with pytest.raises(CheckpointError, match=r"all.weight_scale_inv packs 128 rows as one and cannot be taken apart"):
        load(tmp_path, form, TensorRanks(), naming)
