"""Each rank reads the part of every tensor that it computes with, however the checkpoint stores it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from quire_engine.distributed.ranks import TensorRanks, build_for
from quire_engine.layers.embedding import Embedding
from quire_engine.layers.linear import ColumnLinear, RowLinear, Rows, create_weights
from quire_engine.loading.file_tensor import FileTensor
from quire_engine.loading.staging import Staging
from quire_engine.loading.weights import load_weights, weight_shards
from quire_engine.models.decoder import CausalLM
from quire_engine.models.naming import Naming, Source
from quire_engine.models.registry import decoder_spec
from tests.engine.models.checkpoints import ALL, make_model, save

Stored = Callable[[dict[str, torch.Tensor]], tuple[dict[str, torch.Tensor], Naming]]

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 12, 8, 2, 3, 10


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        heads, kv_heads = Rows(HEADS, HEAD_DIM), Rows(KV_HEADS, HEAD_DIM)
        self.qkv = ColumnLinear(HIDDEN, {"q": heads, "k": kv_heads, "v": kv_heads}, bias=True)
        self.o = RowLinear(heads, HIDDEN, bias=True)
        self.embed = Embedding(VOCAB, HIDDEN)


def checkpoint() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = {"q": HEADS * HEAD_DIM, "k": KV_HEADS * HEAD_DIM, "v": KV_HEADS * HEAD_DIM}
    tensors = {f"{n}.weight": torch.randn(r, HIDDEN, generator=generator) for n, r in rows.items()}
    tensors |= {f"{n}.bias": torch.randn(r, generator=generator) for n, r in rows.items()}
    tensors |= {"o.weight": torch.randn(HIDDEN, HEADS * HEAD_DIM, generator=generator), "o.bias": torch.randn(HIDDEN)}
    return tensors | {"embed.weight": torch.randn(VOCAB, HIDDEN, generator=generator)}


def load(directory: Path, rank: int, size: int, naming: Naming, readers: int = 1) -> Block:
    with build_for(TensorRanks(rank, size)):
        block = Block()
    create_weights(block)
    load_weights(block, directory, naming, readers=readers)
    return block


def as_it_is(tensors: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], Naming]:
    return tensors, Naming(unused=("lm_head.weight",))


def fused_by_head_and_turned(tensors: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], Naming]:
    """As GPT-2 turns its weights, and as others mix q, k and v by head."""
    starts = {"q": 0, "k": HEADS * HEAD_DIM, "v": (HEADS + KV_HEADS) * HEAD_DIM}
    order = torch.randperm((HEADS + 2 * KV_HEADS) * HEAD_DIM, generator=torch.Generator().manual_seed(1))
    places = order.argsort()
    weight = torch.cat([tensors[f"{n}.weight"] for n in starts])[order]
    bias = torch.cat([tensors[f"{n}.bias"] for n in starts])[order]
    stored = {"fused.weight": weight.t().contiguous(), "fused.bias": bias, "out.weight": tensors["o.weight"].t()}
    stored |= {"out.bias": tensors["o.bias"], "embed.weight": tensors["embed.weight"]}

    def source(name: str) -> Source:
        part, _, kind = name.rpartition(".")
        if part in starts:
            rows = places[starts[part] : starts[part] + len(tensors[name])]
            return Source(f"fused.{kind}", rows, transposed=kind == "weight")
        return Source(name.replace("o.", "out."), transposed=name == "o.weight")

    return {n: t.contiguous() for n, t in stored.items()}, Naming(source, unused=("lm_head.weight",))


@pytest.mark.parametrize("readers", [1, 3])
@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("stored_as", [as_it_is, fused_by_head_and_turned])
def test_ranks_hold_their_heads_and_together_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, stored_as: Stored, readers: int
) -> None:
    if readers > 1:  # as on a GPU
        monkeypatch.setattr("quire_engine.loading.readers.reader_for", Staging)
    tensors = checkpoint()
    stored, naming = stored_as(tensors)
    save_file(stored, tmp_path / "model.safetensors")
    blocks = [load(tmp_path, rank, size, naming, readers) for rank in range(size)]
    for rank, block in enumerate(blocks):
        kv = [rank * KV_HEADS // size] if size > KV_HEADS else range(KV_HEADS)[TensorRanks(rank, size).share(KV_HEADS)]
        for kind in ("weight", "bias"):
            q, k, v = (part.t() for part in block.qkv.split(getattr(block.qkv, kind).t()))
            assert torch.equal(q, tensors[f"q.{kind}"].chunk(size)[rank])
            for own, name in ((k, "k"), (v, "v")):
                heads = tensors[f"{name}.{kind}"].unflatten(0, (KV_HEADS, HEAD_DIM))
                assert torch.equal(own, heads[list(kv)].flatten(0, 1))
        assert torch.equal(block.o.weight, tensors["o.weight"].chunk(size, dim=1)[rank])
        assert torch.equal(block.o.bias, tensors["o.bias"])  # type: ignore[arg-type]  # it has one
    embedding = torch.cat([block.embed.weight for block in blocks])
    assert torch.equal(embedding[:VOCAB], tensors["embed.weight"])
    assert not embedding[VOCAB:].any()


def test_a_number_of_ranks_that_splits_no_heads_is_named() -> None:
    with build_for(TensorRanks(0, 3)), pytest.raises(ValueError, match=r"--tensor-parallel-size is 3: .* 8 heads"):
        Block()


@pytest.mark.slow
@pytest.mark.parametrize("family", ALL)
def test_every_family_is_read_alike_by_two_ranks_from_mapped_files_and_through_small_buffers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    cls, config = ALL[family]
    model = make_model(cls, config())
    save(model, tmp_path)
    spec = decoder_spec(model.config.to_dict())

    whole = CausalLM(spec)
    create_weights(whole)

    def read(rank: int) -> dict[str, torch.Tensor]:
        with build_for(TensorRanks(rank, 2)):
            decoder = CausalLM(spec)
        create_weights(decoder)
        load_weights(decoder, tmp_path, spec.naming, whole, readers=2)
        return decoder.state_dict()

    mapped = [read(rank) for rank in range(2)]
    monkeypatch.setattr("quire_engine.loading.readers.reader_for", lambda device: Staging(device, 1000))
    for rank in range(2):
        through_buffers = read(rank)
        assert all(torch.equal(tensor, through_buffers[name]) for name, tensor in mapped[rank].items())


@pytest.mark.parametrize("stored_as", [as_it_is, fused_by_head_and_turned])
def test_what_several_tensors_are_stored_as_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored_as: Stored
) -> None:
    stored, naming = stored_as(checkpoint())
    save_file(stored, tmp_path / "model.safetensors")
    read = count_bytes(monkeypatch)
    load(tmp_path, 0, 1, naming)
    assert sum(read) == sum(tensor.nbytes for tensor in stored.values())


@pytest.mark.parametrize(
    "name",
    [
        "GPTNeoXForCausalLM: parallel block",
        "FalconForCausalLM: groups of heads, two norms",
        "Phi3ForCausalLM: fused projections",
        "GPT2LMHeadModel: learned positions",
    ],
)
@pytest.mark.parametrize("size", [1, 2])
def test_a_rank_reads_as_many_bytes_as_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, size: int
) -> None:
    cls, config = ALL[name]
    model = make_model(cls, config())
    save(model, tmp_path)
    spec = decoder_spec(model.config.to_dict())
    read = count_bytes(monkeypatch)
    for rank in range(size):
        with build_for(TensorRanks(rank, size)):
            decoder = CausalLM(spec)
        create_weights(decoder)
        load_weights(decoder, tmp_path, spec.naming)
        assert sum(read) == sum(shard.target.nbytes for shard in weight_shards(decoder).values())
        read.clear()


def count_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of what is read from then on."""
    sizes: list[int] = []

    class Counting(Staging):
        def read(self, stored: FileTensor, where: Sequence[slice], into: torch.Tensor) -> None:
            sizes.append(into.numel() * stored.dtype.itemsize)
            super().read(stored, where, into)

    monkeypatch.setattr("quire_engine.loading.readers.reader_for", Counting)
    return sizes
