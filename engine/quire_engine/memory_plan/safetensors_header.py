"""Sizes of weights from the headers of safetensors files, without reading the weights.

The format: 8 bytes of length, little-endian, then JSON of name -> dtype, shape, data_offsets.
"""

from __future__ import annotations

import json
from pathlib import Path

_BYTES_AT_MOST = 100 * 1024 * 1024


def tensor_bytes(file: Path) -> dict[str, int]:
    """Bytes of each tensor in `file`. Raises `ValueError` when it is not a safetensors file or was cut off."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _BYTES_AT_MOST):
            raise ValueError(f"{file} is not a safetensors file, or was cut off: download it again")
        try:
            header = json.loads(stream.read(length))
            sizes = {n: e["data_offsets"][1] - e["data_offsets"][0] for n, e in header.items() if n != "__metadata__"}
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise ValueError(f"{file} is not a safetensors file: its header does not parse ({error})") from error
    if 8 + length + sum(sizes.values()) != size:
        raise ValueError(f"{file} has {size} bytes and its header asks for {8 + length + sum(sizes.values())}: cut off")
    return sizes
