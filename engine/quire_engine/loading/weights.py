"""Weights into a model: streamed from safetensors, tensor by tensor, or drawn at random."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from quire_engine.layers.linear import DRAWN_STD, Linear
from quire_engine.layers.norm import Norm
from quire_engine.layers.shard import Packed, Shard, Sharded
from quire_engine.loading.errors import CheckpointError
from quire_engine.loading.readers import Read, read_all
from quire_engine.loading.reading import checked_shape, place_of, source_of
from quire_engine.memory_plan.model_shape import BYTES_OF_DTYPE, ModelShape
from quire_engine.memory_plan.quantization import unexplained_weight
from quire_engine.memory_plan.safetensors_header import TensorHeader, tensor_headers
from quire_engine.memory_plan.weight_files import checkpoint_bytes, checkpoint_headers, weight_files
from quire_engine.models.naming import Naming

# Parameters that a byte of a file may hold: 4 at 2 bits, and some more since the shape may say too much.
_MOST_A_BYTE = 16


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


def stored_tensors(directory: Path, naming: Naming) -> Callable[[str], TensorHeader | None]:
    """The tensors in the safetensors files of `directory`, each by the name that it has here, or None.

    Raises `CheckpointError` for files that are not sound.
    """
    try:
        headers = checkpoint_headers(directory)
    except ValueError as error:
        raise CheckpointError("InvalidCheckpoint", str(error)) from error
    naming = naming.of(headers)
    return lambda name: headers.get(source_of(naming, name, Packed(rows_each=None, turned=True)).name)


def check_size(shape: ModelShape, directory: Path, more: int = 0) -> None:
    """Raise `CheckpointError` where a model of this shape is far larger than the files, before memory is asked for.

    It has `more` elements beside those of the decoder.
    """
    try:
        stored = checkpoint_bytes(directory)
    except ValueError as error:
        raise CheckpointError("InvalidCheckpoint", str(error)) from error
    elements = shape.weight_bytes() // BYTES_OF_DTYPE[shape.dtype] + more
    if elements > _MOST_A_BYTE * stored:
        raise CheckpointError(
            "InvalidCheckpoint",
            f"config.json describes a model of {elements} parameters and the files in {directory} hold {stored} bytes: "
            "they do not belong together, or one of its sizes is wrong",
        )


@torch.no_grad()
def load_weights(
    model: nn.Module,
    directory: Path,
    naming: Naming,
    whole: nn.Module | None = None,
    more: Sequence[Path] = (),
    readers: int = 1,
) -> None:
    """Fill `model` from the safetensors files in `directory`, reading of each tensor what this rank holds.

    `whole` is what the files are of, where `model` has some of its layers only: it needs no memory for weights.
    `more` are files that belong to them. As many threads as there are `readers` read.

    Raises `CheckpointError` for files that are missing or broken, and for tensors that are missing, unexpected or
    of another shape or type.
    """
    try:
        # A file that was cut off is found here, before a part of it is read.
        headers = {file: tensor_headers(file) for file in (*weight_files(directory), *more)}
        own = weight_shards(model)
        reads = _plan_reads(own, own if whole is None else weight_shards(whole), headers, naming, directory)
        read_all(reads, next(model.parameters()).device, readers)
    except (ValueError, SafetensorError) as error:
        raise CheckpointError("InvalidCheckpoint", str(error)) from error


def _plan_reads(
    own: Mapping[str, Shard],
    shards: Mapping[str, Shard],
    headers: Mapping[Path, Mapping[str, TensorHeader]],
    naming: Naming,
    directory: Path,
) -> list[Read]:
    """Check all of `shards`, the whole model's. Returns what to read for `own`, in the order of the files."""
    file_of = {name: file for file, tensors in headers.items() for name in tensors}
    if not any(shard.packed for shard in shards.values()):
        _check_floats(headers, directory)
    naming = naming.of(file_of)
    sources = {name: source_of(naming, name, shard.packed) for name, shard in shards.items()}
    absent = {name: source for name, source in sources.items() if source.name not in file_of}
    optional = {name for name in absent if (packed := shards[name].packed) is not None and packed.optional}
    missing = sorted(source.name for name, source in absent.items() if name not in optional)
    if missing:
        raise ValueError(
            f"{directory} lacks {len(missing)} of {len(shards)} tensors, {missing[0]} for one: "
            "config.json and the weights do not belong together, or a file is missing"
        )
    wanted = {source.name for source in sources.values()}
    # Where the head is the embedding, a copy of it may be stored beside.
    ignored = (*naming.unused, *(() if "lm_head.weight" in shards else (naming.source("lm_head.weight").name,)))
    others = [name for name in file_of if name not in wanted and not name.endswith(ignored)]
    others = [name for name in others if not name.startswith(naming.unused_prefixes)]
    extra = next((name for name in others if not _is_unused_zeros(file_of[name], name, naming)), None)
    if extra is not None:
        raise ValueError(f"{file_of[extra]} holds {extra}, which the model that config.json describes does not have")
    by_file: dict[Path, dict[Hashable, list[str]]] = defaultdict(lambda: defaultdict(list))
    num_rows: dict[str, int] = defaultdict(int)  # of tensors that are several of the model's
    for name, source in sources.items():
        if name in optional:
            continue
        if name in own:
            by_file[file_of[source.name]][place_of(source, own[name])].append(name)
        if source.rows is not None:
            num_rows[source.name] = max(num_rows[source.name], int(source.rows.max()) + 1)
    reads: list[Read] = []  # all checked before the first is read: there may be minutes in between
    for file, places in by_file.items():
        for names in places.values():
            parts = [(sources[name], own[name]) for name in names]
            stored = parts[0][0].name
            header = headers[file][stored]
            try:
                shapes = [checked_shape(*part, header, num_rows[stored]) for part in parts]
            except ValueError as error:
                raise ValueError(f"{file}: {error}") from error
            reads.append(Read(file, stored, header, shapes[0], parts))
    return sorted(reads, key=lambda read: (str(read.file), read.header.start))


def _check_floats(headers: Mapping[Path, Mapping[str, TensorHeader]], directory: Path) -> None:
    for file, tensors in headers.items():
        unexplained = unexplained_weight(tensors)
        if unexplained is not None:
            unread = directory / "hf_quant_config.json"
            other = f"; {unread.name}, of ModelOpt, is not read" if unread.is_file() else ""
            raise ValueError(f"{file} holds {unexplained}{other}")


def _is_unused_zeros(file: Path, name: str, naming: Naming) -> bool:
    if not name.endswith(naming.unused_zeros):
        return False
    with safe_open(file, framework="pt") as tensors:
        return not bool(tensors.get_tensor(name).any())


@torch.no_grad()
def draw_weights(model: nn.Module, seed: int) -> None:
    """Fill `model` with random weights, the same for the same seed, that keep activations in range."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed & (2**63 - 1))
    for module in model.modules():
        if isinstance(module, Linear):
            module.method.draw(module, generator)
            if module.bias is not None:
                module.bias.zero_()
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if name == "bias":
                parameter.zero_()
            elif isinstance(module, Norm):
                parameter.fill_(module.neutral)
            else:
                parameter.normal_(0.0, DRAWN_STD, generator=generator)
