"""Sizes of weights from the headers of safetensors files, without reading the weights.

The format: 8 bytes of length, little-endian, then JSON of name -> dtype, shape, data_offsets.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

LENGTH_BYTES = 8
_BYTES_AT_MOST = 100 * 1024 * 1024


@dataclass(frozen=True)
class TensorHeader:
    """One tensor of a file."""

    dtype: str  # as the format writes it: F32, BF16, I32, F8_E4M3, ...
    shape: tuple[int, ...]
    size: int  # bytes in the file
    start: int = 0  # in bytes, behind the header


def header_length(start: bytes) -> int:
    """Bytes of the JSON that follows the first 8 bytes. Raises `ValueError` when these begin no safetensors file."""
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    if len(start) < LENGTH_BYTES or not 2 <= length <= _BYTES_AT_MOST:
        raise ValueError("it is not a safetensors file, or was cut off: download it again")
    return length


def parse_header(text: bytes) -> dict[str, TensorHeader]:
    """The tensors that a header names. Raises `ValueError` when it does not parse."""
    try:
        return {
            str(name): TensorHeader(
                str(entry["dtype"]),
                tuple(int(size) for size in entry["shape"]),
                int(entry["data_offsets"][1]) - int(entry["data_offsets"][0]),
                int(entry["data_offsets"][0]),
            )
            for name, entry in json.loads(text).items()
            if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError) as error:
        raise ValueError(f"it is not a safetensors file: its header does not parse ({error})") from error


def tensor_headers(file: Path) -> dict[str, TensorHeader]:
    """The tensors of `file`. Raises `ValueError` when it is not a safetensors file or was cut off."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        try:
            length = header_length(stream.read(LENGTH_BYTES))
            if length > size - LENGTH_BYTES:
                raise ValueError("it is not a safetensors file, or was cut off: download it again")
            tensors = parse_header(stream.read(length))
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
    wanted = LENGTH_BYTES + length + sum(tensor.size for tensor in tensors.values())
    if wanted != size:
        raise ValueError(f"{file} has {size} bytes and its header asks for {wanted}: cut off")
    return tensors


def tensor_bytes(file: Path) -> dict[str, int]:
    """Bytes of each tensor in `file`. Raises `ValueError` when it is not a safetensors file or was cut off."""
    return {name: tensor.size for name, tensor in tensor_headers(file).items()}
