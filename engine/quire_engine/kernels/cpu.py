"""Kernels for CPUs: a small library in C++ that is built with the package and used where it is faster.

Each function does what torch would, by the library where that is loaded and takes the tensors, else by torch. It is
faster on processors with AVX-512, by measurement; for linears in bfloat16 where these multiply it by tiles (AMX), or
have no instructions for it at all: see benchmarks/linears.py.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.nn import functional

from quire_engine.kernels.choice import are_wanted

log = logging.getLogger(__name__)

NEEDED = frozenset(("avx512f", "avx512bw", "avx512dq", "avx512vl", "fma"))
MULTIPLIES_BYTES = "avx512_vnni"
MULTIPLY_BFLOAT16 = frozenset(("avx512_bf16", "amx_bf16"))  # oneDNN's linears use them
MULTIPLY_TILES = frozenset(("amx_tile", "amx_bf16", "amx_int8", "avx512_bf16"))  # the last rounds what they multiply
_LINE = 32  # elements in bfloat16 of a line of the caches
LARGEST_HEAD = 256
_NAMES = {torch.bfloat16: "bfloat16", torch.float32: "float32"}
_POINTER, _SIZE, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float


class Library:
    """The kernels. Threads are those of torch, whose OpenMP it shares. Tensors are on the CPU."""

    most_together = 4096
    """Tokens of a step that `AllLayers` takes at most, by the room that it keeps for them."""

    def __init__(self, file: Path, *, tiles: bool) -> None:
        """With `tiles` linears and attention go by the processor's tiles, if Linux lets them.

        Raises `OSError` or `AttributeError` where the file is none of this machine's libraries.
        """
        found = ctypes.CDLL(str(file))
        self.tiles = tiles and bool(found.allow_tiles())
        self._linear = found.linear_tiles if self.tiles else found.linear_bfloat16
        self._room = found.linear_tiles_room if self.tiles else found.linear_room
        self._linear_int8 = found.linear_int8_tiles if self.tiles else found.linear_int8
        self._int8_room = found.linear_int8_tiles_room if self.tiles else found.linear_room
        for room in (self._room, self._int8_room):
            room.argtypes, room.restype = [_SIZE] * 2, _SIZE
        around = [_POINTER] * 3 + [_SIZE] * 3 + [_INT]
        self._linear.argtypes, self._linear.restype = [_POINTER, _POINTER, _SIZE, *around], None
        self._linear_int8.argtypes, self._linear_int8.restype = [*[_POINTER] * 3, *around], None
        found.linear_int8_most.restype = _SIZE
        self._most_inputs: int = found.linear_int8_most()
        self._attention_room, self._keep = found.attention_room, found.keep
        self._attention_room.argtypes, self._attention_room.restype = [_POINTER] + [_SIZE] * 4, _SIZE
        pointer_and_stride: Sequence[type] = (_POINTER, _SIZE)
        self._keep.argtypes = [*pointer_and_stride, *pointer_and_stride, *[_POINTER] * 3, _SIZE, _SIZE]
        self._keep.restype = None
        attention = [*pointer_and_stride, *[_POINTER] * 3, *pointer_and_stride, _POINTER, *[_SIZE] * 7]
        attention += [_FLOAT, _FLOAT, _INT, _POINTER, _INT]
        norm = [*pointer_and_stride, _POINTER, _POINTER, _SIZE, _SIZE, _FLOAT, _INT, _INT]
        rotation = [*pointer_and_stride, *[_POINTER] * 3, *[_SIZE] * 4, _INT]
        self._attention = _by_dtype(found, "attention", attention)
        self._rms_norm = _by_dtype(found, "rms_norm", norm)
        self.run_layers = found.run_layers  # see cpu_layers.py
        self.run_layers.argtypes, self.run_layers.restype = [_POINTER] * 3 + [_SIZE, _INT, _POINTER], _SIZE
        self._greatest = found.greatest_bfloat16
        self._greatest.argtypes, self._greatest.restype = [_POINTER, _SIZE, _POINTER, *[_SIZE] * 3, _INT], None
        self._silu_and_mul = _by_dtype(found, "silu_and_mul", [_POINTER, _POINTER, _SIZE, _SIZE, _INT])
        self._rotate = _by_dtype(found, "rotate", rotation)

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """[..., inputs] -> [..., outputs], for weight [outputs, inputs] and bias [outputs]; all bfloat16.

        Rows of the weight may lie apart. Sums are float32 and in the same order whatever the number of rows of x: a
        row's result depends on that row alone.
        """
        return self._multiply(self._linear, self._room, x, weight, weight.stride(0), bias)

    def linear_int8(
        self, x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """As `linear`, for weight [outputs, inputs] int8 times scale [outputs, 1] float32, if `takes_int8` says so.

        x is taken to 21 bits below the greatest element of each row.
        """
        return self._multiply(self._linear_int8, self._int8_room, x, weight, scale.data_ptr(), bias)

    def takes_int8(self, inputs: int) -> bool:
        """Whether weights in int8 of so many inputs can be multiplied."""
        return multiplies_bytes and inputs <= self._most_inputs

    def _multiply(
        self,
        kernel: Callable[..., None],
        room_for: Callable[[int, int], int],
        x: torch.Tensor,
        weight: torch.Tensor,
        of_weight: int,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        """By a kernel that takes `of_weight` behind weight [outputs, inputs]."""
        outputs, inputs = weight.shape
        x = x.contiguous()
        y = x.new_empty((*x.shape[:-1], outputs))
        rows = x.numel() // inputs
        room = torch.empty(room_for(rows, inputs), dtype=torch.uint8)
        added = None if bias is None else bias.data_ptr()
        pointers = added, y.data_ptr(), room.data_ptr()
        sizes = rows, inputs, outputs, torch.get_num_threads()
        kernel(x.data_ptr(), weight.data_ptr(), of_weight, *pointers, *sizes)
        return y

    def attention(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        out: torch.Tensor,
        tables: torch.Tensor,
        lengths: torch.Tensor,
        *,
        window: int | None,
        scale: float,
        softcap: float | None,
    ) -> None:
        """Attention of the last tokens of sequences over pages of keys and values, those tokens' own included.

        q [sequences * tokens, heads, size] and `out` like it, of the caches' dtype [blocks, page, KV heads, size],
        tables [sequences, blocks] and lengths [sequences] int64. `size` is a multiple of 16, up to `LARGEST_HEAD`.
        Sums are float32. A sequence's result depends on that sequence alone.
        """
        _, page, kv_heads, size = k_cache.shape
        q, sequences = _by_rows(q), len(lengths)
        tokens, heads = len(q) // sequences, q.shape[1]
        room = torch.empty(self._attention_room(lengths.data_ptr(), sequences, tokens, heads, size))
        self._attention[q.dtype](
            q.data_ptr(),
            q.stride(0),
            k_cache.data_ptr(),
            v_cache.data_ptr(),
            out.data_ptr(),
            tables.data_ptr(),
            tables.stride(0),
            lengths.data_ptr(),
            *(sequences, tokens, heads, kv_heads, size, page, window or 0),
            scale,
            softcap or 0.0,
            self.tiles,
            room.data_ptr(),
            torch.get_num_threads(),
        )

    def keep(
        self, k: torch.Tensor, v: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, slots: torch.Tensor
    ) -> None:
        """Write k and v [tokens, KV heads, size] to `slots` [tokens] int64 of the caches."""
        k, v = _by_rows(k), _by_rows(v)
        item = k.element_size()
        strides = k.stride(0) * item, v.stride(0) * item
        caches = k_cache.data_ptr(), v_cache.data_ptr(), slots.data_ptr()
        self._keep(k.data_ptr(), strides[0], v.data_ptr(), strides[1], *caches, len(k), k[0].numel() * item)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float, *, offset: bool) -> torch.Tensor:
        """As `RMSNorm`, or with `offset` as `OffsetRMSNorm`: [..., size] -> the same."""
        size = len(weight)
        x = x.contiguous()
        out = torch.empty_like(x)
        pointers = x.data_ptr(), size, weight.data_ptr(), out.data_ptr()
        self._rms_norm[x.dtype](*pointers, x.numel() // size, size, eps, offset, torch.get_num_threads())
        return out

    def silu_and_mul(self, x: torch.Tensor) -> torch.Tensor:
        """silu(x[..., :size]) * x[..., size:]: [..., 2 * size] -> [..., size]."""
        size = x.shape[-1] // 2
        x = x.contiguous()
        out = x.new_empty((*x.shape[:-1], size))
        rows = out.numel() // size
        self._silu_and_mul[x.dtype](x.data_ptr(), out.data_ptr(), rows, size, torch.get_num_threads())
        return out

    def rotate(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Turn the pairs (i, i + half) of x [tokens, heads, size] by angles [tokens, 1, half]; other features stay."""
        x, cos, sin = _by_rows(x), cos.contiguous(), sin.contiguous()
        tokens, heads, size = x.shape
        out = x.new_empty(x.shape)
        pointers = x.data_ptr(), x.stride(0), cos.data_ptr(), sin.data_ptr(), out.data_ptr()
        self._rotate[x.dtype](*pointers, tokens, heads, cos.shape[-1], size, torch.get_num_threads())
        return out

    def greatest(self, logits: torch.Tensor, none: int) -> torch.Tensor:
        """The first of the greatest elements of each row, [rows, columns] bfloat16 -> [rows] int64.

        `none` for a row that holds NaN or infinity, or -infinity alone.
        """
        logits = logits if logits.stride(-1) == 1 else logits.contiguous()
        rows, columns = logits.shape
        found = torch.empty(rows, dtype=torch.int64)
        pointers = logits.data_ptr(), logits.stride(0), found.data_ptr()
        self._greatest(*pointers, rows, columns, none, torch.get_num_threads())
        return found


def _by_dtype(found: ctypes.CDLL, name: str, argtypes: Sequence[type]) -> dict[torch.dtype, ctypes._NamedFuncPointer]:
    functions = {dtype: getattr(found, f"{name}_{suffix}") for dtype, suffix in _NAMES.items()}
    for function in functions.values():
        function.argtypes, function.restype = argtypes, None
    return functions


def _by_rows(x: torch.Tensor) -> torch.Tensor:
    """`x` [tokens, heads, size] with each token's features together."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`functional.linear`, by the library where that is faster."""
    ours = library is not None and multiplies and x.dtype == weight.dtype == torch.bfloat16
    ours = ours and (bias is None or bias.dtype == x.dtype) and rows_are_whole(weight)
    if ours and weight.device.type == "cpu" and not torch.is_grad_enabled():
        assert library is not None
        return library.linear(x, weight, bias)
    return functional.linear(x, weight, bias)


def rows_are_whole(weight: torch.Tensor) -> bool:
    """Whether linears take weight [outputs, inputs] as it lies in memory: each row in one piece."""
    return weight.stride(1) == 1 and weight.stride(0) >= weight.shape[1]


def empty_weight(outputs: int, inputs: int) -> torch.Tensor:
    """[outputs, inputs] of torch's default dtype and device, for a linear's weight, with rows where they are read best.

    A tile is 16 rows at once, which push one another out of the first-level cache where they begin at few of its
    places. So for tiles there is a line between rows then, or two: 32 of them lie evenly over all places.
    """
    crowded = inputs % (16 * _LINE) == 0 and library is not None and library.tiles
    apart = 0
    if crowded and torch.get_default_dtype() == torch.bfloat16 and torch.get_default_device().type == "cpu":
        apart = _LINE if inputs % (64 * _LINE) else 2 * _LINE
    return torch.empty(outputs, inputs + apart)[:, :inputs]


def library_for(x: torch.Tensor, *others: torch.Tensor) -> Library | None:
    """The library, if it is there and has kernels for such tensors, which nobody asks for a gradient of."""
    if library is None or x.dtype not in _NAMES or x.device.type != "cpu" or torch.is_grad_enabled():
        return None
    return library if all(other.dtype == x.dtype for other in others) else None


def flags_of_processor() -> frozenset[str]:
    """The instructions that the processor has, by Linux's names; none where they are not told so."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), ()))


def _built() -> Library | None:
    if not (are_wanted() and flags_of_processor() >= NEEDED):
        return None
    for file in Path(__file__).parent.glob("_cpu.*.so"):
        try:
            return Library(file, tiles=flags_of_processor() >= MULTIPLY_TILES)
        except (OSError, AttributeError) as error:
            log.warning("the library of kernels for CPUs cannot be used, torch does its work: %s", error)
            return None
    return None


library = _built()
multiplies_bytes = MULTIPLIES_BYTES in flags_of_processor()
multiplies = (library is not None and library.tiles) or not flags_of_processor() & MULTIPLY_BFLOAT16
