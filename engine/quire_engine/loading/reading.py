"""One tensor of a checkpoint, or the part of it that belongs somewhere: its name, its shape and its values."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence
from dataclasses import replace

import torch

from quire_engine.layers.shard import Packed, Shard
from quire_engine.loading.file_tensor import FileTensor, Reader
from quire_engine.memory_plan.safetensors_header import TensorHeader
from quire_engine.models.naming import Naming, Source

_ROUNDING = threading.Lock()
"""What is rounded is whole on the device first, several times over: one tensor of all readers' at a time."""

_FLOATS = ("F64", "F32", "F16", "BF16")
_INTEGERS = ("I32", "U32")


def source_of(naming: Naming, name: str, packed: Packed | None = None) -> Source:
    """Where the tensor that is `name` here is stored. The parts of a quantized weight are named after the weight."""
    if packed is None:
        return naming.source(name)
    path, _, ending = name.rpartition(".")
    weight = naming.source(f"{path}.weight")
    own = replace(weight, name=weight.name.removesuffix("weight") + ending, transposed=packed.turned)
    if weight.transposed and not packed.turned:
        raise ValueError(f"{own.name} is of a quantized weight that is stored turned: this is not supported")
    if weight.rows is None:
        return own
    if packed.rows_each is None:
        return replace(own, rows=None)
    return replace(own, rows=_packed_rows(weight.rows, packed.rows_each, own.name))


def _packed_rows(rows: torch.Tensor, each: int, name: str) -> torch.Tensor:
    """Which rows of a tensor stand for `rows` [n] of its weight, where one stands for `each` of them: [n / each]."""
    if len(rows) % each == 0:
        groups = rows.view(-1, each)
        first = groups[:, :1]
        if not bool((first % each).any()) and torch.equal(groups, first + torch.arange(each)):
            return first[:, 0] // each
    raise ValueError(f"{name} packs {each} rows as one and cannot be taken apart: several of the model's are in it")


def checked_shape(source: Source, shard: Shard, stored: TensorHeader, num_rows: int) -> tuple[int, ...]:
    """The shape to read a stored tensor as, of whose rows the model has `num_rows`.

    Raises `ValueError` where it is not what `shard` takes.
    """
    wanted = shard.whole if source.rows is None else (num_rows, *shard.whole[1:])
    if source.transposed:
        wanted = (wanted[1], wanted[0])
    if source.matrix is not None:
        wanted = (source.matrix[1], *wanted)
    same = stored.shape == wanted
    if shard.packed is not None:
        same = _without_ones(stored.shape) == _without_ones(wanted)
    if not same:
        raise ValueError(f"{source.name} has the shape {list(stored.shape)} and config.json asks for {list(wanted)}")
    dtypes = _dtypes(shard.dtype)
    if stored.dtype not in dtypes:
        raise ValueError(f"{source.name} has the type {stored.dtype} and config.json asks for {' or '.join(dtypes)}")
    return wanted


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _dtypes(wanted: torch.dtype) -> tuple[str, ...]:
    """What a tensor's type may be in the file."""
    if wanted == torch.float8_e4m3fn:
        return ("F8_E4M3",)
    return _FLOATS if wanted.is_floating_point else _INTEGERS


def place_of(source: Source, shard: Shard) -> Hashable:
    """The same for shards that can be filled together: of the same columns of one stored matrix."""
    columns = shard.columns
    return source.name, source.matrix, source.transposed, columns.start, columns.stop


def fill(parts: Sequence[tuple[Source, Shard]], stored: FileTensor, reader: Reader) -> None:
    """Fill the shards that `place_of` puts together from `stored`, which has the shape that `checked_shape` gave.

    Only rows that a shard holds are read, and those between them, each once. Raises `ValueError` for values that a
    shard does not take, and what `Reader.read` raises.
    """
    source, shard = parts[0]
    num_rows = stored.shape[-1 if source.transposed else -len(shard.whole)]
    spans = [(_span(*part, num_rows), part) for part in parts]
    spans.sort(key=lambda found: found[0].start)
    while spans:
        stop, count = spans[0][0].stop, 1
        while count < len(spans) and spans[count][0].start < stop:  # queries, keys and values in turn, for one
            stop = max(stop, spans[count][0].stop)
            count += 1
        _fill_rows(spans[:count], stored, slice(spans[0][0].start, stop), reader)
        del spans[:count]


def _fill_rows(
    spans: Sequence[tuple[slice, tuple[Source, Shard]]], stored: FileTensor, rows: slice, reader: Reader
) -> None:
    """Fill shards from `rows` of a tensor, which are read together."""
    source, shard = spans[0][1]
    where = _where(source, shard, rows)
    if len(spans) == 1 and source.rows is None and shard.place is not None:
        reader.read(stored, where, _as_stored(source, shard.place))
        return
    if all(target.place is not None for _, (_, target) in spans):
        _fill_from(spans, reader.get(stored, where), rows)
        return
    with _ROUNDING:
        _fill_from(spans, reader.get(stored, where), rows)
        reader.finish()


def _fill_from(spans: Sequence[tuple[slice, tuple[Source, Shard]]], tensor: torch.Tensor, rows: slice) -> None:
    source = spans[0][1][0]
    tensor = tensor if source.matrix is None else tensor[0]
    tensor = tensor.t() if source.transposed else tensor
    for span, (own, target) in spans:
        held = slice(span.start - rows.start, span.stop - rows.start)
        try:
            target.fill(tensor[held] if own.rows is None else tensor[own.rows[target.rows] - rows.start])
        except ValueError as error:
            raise ValueError(f"{own.name} {error}") from error


def _as_stored(source: Source, place: torch.Tensor) -> torch.Tensor:
    """A view of a shard's place that has the dimensions of what is stored."""
    place = place.t() if source.transposed else place
    return place if source.matrix is None else place[None]


def _span(source: Source, shard: Shard, num_rows: int) -> slice:
    """From the first stored row that the shard holds to its last."""
    if source.rows is None:
        return slice(*shard.rows.indices(num_rows)[:2])
    picked = source.rows[shard.rows]
    return slice(int(picked.min()), int(picked.max()) + 1)


def _where(source: Source, shard: Shard, rows: slice) -> tuple[slice, ...]:
    """Rows, and the columns of the shard, as slices of the stored tensor's dimensions."""
    parts = (shard.columns, rows) if source.transposed else (rows, shard.columns)[: len(shard.whole)]
    return parts if source.matrix is None else (slice(source.matrix[0], source.matrix[0] + 1), *parts)
