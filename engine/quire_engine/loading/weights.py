"""Weights into a model: streamed from safetensors, tensor by tensor, or drawn at random."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from quire_engine.layers.norm import RMSNorm
from quire_engine.layers.shard import Shard, Sharded
from quire_engine.loading.errors import CheckpointError
from quire_engine.memory_plan.safetensors_header import TensorHeader, tensor_headers
from quire_engine.memory_plan.weight_files import weight_files
from quire_engine.models.naming import Naming, Source


def weight_shards(model: nn.Module) -> dict[str, Shard]:
    """Where each tensor goes and which part of it, by the names that tensors have here."""
    shards: dict[str, Shard] = {}
    for path, module in model.named_modules():
        if isinstance(module, Sharded):
            shards |= module.shards(path)
        else:
            prefix = f"{path}." if path else ""
            own = module.named_parameters(recurse=False)
            shards |= {prefix + name: Shard(p, tuple(p.shape)) for name, p in own}
    return shards


@torch.no_grad()
def load_weights(model: nn.Module, directory: Path, naming: Naming) -> None:
    """Fill `model` from the safetensors files in `directory`, reading of each tensor what this rank holds.

    Raises `CheckpointError` for files that are missing or broken, and for tensors that are missing, unexpected or
    of another shape.
    """
    try:
        # A file that was cut off is found here, before a part of it is read.
        headers = {file: tensor_headers(file) for file in weight_files(directory)}
        _fill_all(weight_shards(model), headers, naming, directory)
    except (ValueError, SafetensorError) as error:
        raise CheckpointError("InvalidCheckpoint", str(error)) from error


def _fill_all(
    shards: Mapping[str, Shard], headers: Mapping[Path, Mapping[str, TensorHeader]], naming: Naming, directory: Path
) -> None:
    file_of = {name: file for file, tensors in headers.items() for name in tensors}
    sources = {name: naming.source(name) for name in shards}
    missing = sorted(source.name for source in sources.values() if source.name not in file_of)
    if missing:
        raise ValueError(
            f"{directory} lacks {len(missing)} of {len(shards)} tensors, {missing[0]} for one: "
            "config.json and the weights do not belong together, or a file is missing"
        )
    wanted = {source.name for source in sources.values()}
    # Where the head is the embedding, a copy of it may be stored beside.
    ignored = (*naming.unused, *(() if "lm_head.weight" in shards else (naming.source("lm_head.weight").name,)))
    extra = next((name for name in file_of if name not in wanted and not name.endswith(ignored)), None)
    if extra is not None:
        raise ValueError(f"{file_of[extra]} holds {extra}, which the model that config.json describes does not have")
    by_file: dict[Path, list[str]] = defaultdict(list)
    num_rows: dict[str, int] = defaultdict(int)  # of tensors that are several of the model's
    for name, source in sources.items():
        by_file[file_of[source.name]].append(name)
        if source.rows is not None:
            num_rows[source.name] = max(num_rows[source.name], int(source.rows.max()) + 1)
    for file, names in by_file.items():
        with safe_open(file, framework="pt") as tensors:
            for name in names:
                source, shard = sources[name], shards[name]
                _check_shape(source, shard, headers[file][source.name].shape, num_rows[source.name], file)
                shard.target.copy_(_read(source, shard, tensors.get_slice(source.name)))


def _check_shape(source: Source, shard: Shard, stored: tuple[int, ...], num_rows: int, file: Path) -> None:
    wanted = shard.whole if source.rows is None else (num_rows, *shard.whole[1:])
    if source.transposed:
        wanted = (wanted[1], wanted[0])
    if wanted != stored:
        raise ValueError(f"{file}: {source.name} has the shape {list(stored)} and config.json asks for {list(wanted)}")


def _read(source: Source, shard: Shard, stored: Any) -> torch.Tensor:
    """The part of a tensor that `shard` holds, from `stored`, safetensors' slice of it."""
    rows, picked = shard.rows, None
    if source.rows is not None:
        picked = source.rows[shard.rows]
        first, last = int(picked.min()), int(picked.max())
        rows, picked = slice(first, last + 1), picked - first  # what is read, and which of it is kept
    if source.transposed:
        tensor: torch.Tensor = stored[shard.columns, rows].t()
    else:
        tensor = stored[rows, shard.columns] if len(shard.whole) > 1 else stored[rows]
    return tensor if picked is None else tensor[picked]


@torch.no_grad()
def draw_weights(model: nn.Module, seed: int) -> None:
    """Fill `model` with random weights, the same for the same seed, that keep activations in range."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed & (2**63 - 1))
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, RMSNorm):
                parameter.fill_(1.0)
            elif name == "bias":
                parameter.zero_()
            else:
                parameter.normal_(0.0, 0.02, generator=generator)
