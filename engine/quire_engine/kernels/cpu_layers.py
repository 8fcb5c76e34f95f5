"""All layers of a plain decoder in one call of the library of kernels for CPUs."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from quire_engine.kernels import cpu, large_pages

_POINTER, _SIZE, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
_ALIGNMENT = 64
_KEPT = 64 << 20  # bytes of room at most, from one call to the next: plans count what layers need as free behind them


@dataclass(frozen=True, eq=False)
class Matrix:
    """A linear: weight [outputs, inputs] bfloat16, or int8 with scale [outputs, 1] float32; bias [outputs] bfloat16.

    Rows of bfloat16 may lie apart; all else is contiguous.
    """

    weight: torch.Tensor
    scale: torch.Tensor | None = None
    bias: torch.Tensor | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerTensors:
    """What one layer computes with. Norms are their weights, and those of queries and keys of one head."""

    input_norm: torch.Tensor
    attention_norm: torch.Tensor
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    qkv: Matrix
    out: Matrix
    gate_up: Matrix
    down: Matrix
    k_cache: torch.Tensor  # [blocks, page, KV heads, size]
    v_cache: torch.Tensor
    window: int | None
    scale: float
    softcap: float | None


@dataclass(frozen=True, eq=False)
class Span:
    """Sequences whose last `tokens` tokens are rows of a batch, from `first` on.

    `tables` are [sequences, blocks] int64 on the CPU, or [blocks] of a single one.
    """

    first: int
    tokens: int
    tables: torch.Tensor
    lengths: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Norms:
    """All norms of one kind, of `RMSNorm` or with `offset` of `OffsetRMSNorm`."""

    eps: float
    offset: bool


@dataclass(frozen=True, eq=False)
class Rotation:
    """Cosines and sines [rows, 1, half] bfloat16, a row a token; or `rows` [tokens] int64 says which each token has."""

    cos: torch.Tensor
    sin: torch.Tensor
    rows: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class Logits:
    """Those of some tokens [n, vocabulary] bfloat16, and the first of the greatest of each [n] int64, or `none`.

    That is of rows that hold NaN or infinity, or -infinity alone. All are contiguous.
    """

    all: torch.Tensor
    greatest: torch.Tensor
    none: int


class _Matrix(ctypes.Structure):
    _fields_ = (
        *((name, _POINTER) for name in ("weights", "scales", "bias")),
        *((name, _SIZE) for name in ("inputs", "outputs", "pitch")),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _POINTER) for name in ("input_norm", "attention_norm", "q_norm", "k_norm")),
        *((name, _Matrix) for name in ("qkv", "out", "gate_up", "down")),
        *((name, _POINTER) for name in ("k_cache", "v_cache")),
        *(("window", _SIZE), ("scale", _FLOAT), ("softcap", _FLOAT)),
    )


class _Decoder(ctypes.Structure):
    _fields_ = (
        *(("layers", _POINTER), ("norm", _POINTER)),
        *((name, _SIZE) for name in ("num_layers", "hidden", "heads", "kv_heads", "size", "page")),
        *((name, _FLOAT) for name in ("eps", "head_eps")),
        *((name, _INT) for name in ("offset", "head_offset", "tiles")),
        ("head", _Matrix),
    )


class _Span(ctypes.Structure):
    _fields_ = (
        *((name, _SIZE) for name in ("first", "sequences", "tokens")),
        *(("tables", _POINTER), ("stride", _SIZE), ("lengths", _POINTER)),
    )


class _Tokens(ctypes.Structure):
    _fields_ = (
        *(("x", _POINTER), ("embedding", _POINTER), ("vocabulary", _SIZE)),
        *((name, _POINTER) for name in ("ids", "cos", "sin", "turns")),
        *(("half", _SIZE), ("slots", _POINTER), ("count", _SIZE), ("spans", _POINTER), ("num_spans", _SIZE)),
        *(("wanted", _POINTER), ("num_wanted", _SIZE)),
        *(("logits", _POINTER), ("greatest", _POINTER), ("none", _SIZE)),
    )


class AllLayers:
    """Layers of one shape, with pointers to their tensors, which stay where they are."""

    def __init__(
        self,
        library: cpu.Library,
        layers: Sequence[LayerTensors],
        norms: Norms,
        head_norms: Norms | None,
        last_norm: torch.Tensor | None,
        embedding: torch.Tensor | None,
        head: Matrix | None,
    ) -> None:
        """All tensors are on the CPU, and contiguous but for what `Matrix` says.

        `head_norms` are those of queries and keys.

        `last_norm` [hidden] bfloat16 are weights of one more norm, behind the last layer, `embedding`
        [vocabulary, hidden] bfloat16 what comes before the first, and `head` what makes logits behind that norm.
        """
        self._library, self._layers, self._last_norm = library, tuple(layers), last_norm
        self._embedding, self._head = embedding, head
        first = layers[0]
        _, page, kv_heads, size = first.k_cache.shape
        self._array = (_Layer * len(layers))(*(_layer(one) for one in layers))
        own = head_norms or norms
        self._decoder = _Decoder(
            *(ctypes.addressof(self._array), _address(last_norm)),
            *(len(layers), len(first.input_norm), first.out.weight.shape[1] // size, kv_heads, size, page),
            *(norms.eps, own.eps, norms.offset, own.offset, library.tiles),
            _Matrix() if head is None else _matrix(head),
        )
        self._room, self._start, self._size = torch.empty(0, dtype=torch.uint8), 0, 0
        self.nanoseconds = (ctypes.c_int64 * 4)()
        """Of the last call: in linears, in attention, in the head and in the rest."""

    def __call__(
        self,
        inputs: torch.Tensor,
        rotation: Rotation,
        slots: torch.Tensor,
        spans: Sequence[Span],
        wanted: torch.Tensor | None = None,
        logits: Logits | None = None,
    ) -> torch.Tensor:
        """[tokens] int64 of the embedding -> [tokens, hidden] bfloat16, or from these in their place.

        `slots` are [tokens] int64 as in `AttentionContext`; `spans` have each token once.
        Where there are `wanted` [n] int64, different tokens, the rows of the others are nothing of use.
        `logits` are filled, for each token that is wanted, where there is a head.
        Raises `IndexError` for what is not in the vocabulary.
        """
        ids, x = None, inputs.contiguous()
        if not x.is_floating_point():
            assert self._embedding is not None
            ids, x = x, self._embedding.new_empty(len(x), self._decoder.hidden)
        cos, sin = rotation.cos.contiguous(), rotation.sin.contiguous()
        lengths = [_integers(one.lengths) for one in spans]
        array = (_Span * len(spans))(*map(_span, spans, lengths))
        batch = _Tokens(
            *(x.data_ptr(), _address(self._embedding), 0 if self._embedding is None else len(self._embedding)),
            *(_address(t) for t in (ids, cos, sin, rotation.rows)),
            *(cos.shape[-1], slots.data_ptr(), len(x), ctypes.addressof(array), len(spans)),
            *(_address(wanted), -1 if wanted is None else len(wanted)),
            *((None, None, 0) if logits is None else (_address(logits.all), _address(logits.greatest), logits.none)),
        )
        pointers, threads = (ctypes.byref(self._decoder), ctypes.byref(batch)), torch.get_num_threads()
        needed = self._library.run_layers(*pointers, self._start, self._size, threads, self.nanoseconds)
        if needed < 0:
            assert ids is not None
            assert self._embedding is not None
            raise IndexError(f"token ids must be from 0 to {len(self._embedding) - 1}: they are {ids.tolist()}")
        if needed > self._size:  # and nothing was done
            self._room, self._size = large_pages.zeros((needed + _ALIGNMENT,), torch.uint8), needed
            self._start = -(-self._room.data_ptr() // _ALIGNMENT) * _ALIGNMENT
            self._library.run_layers(*pointers, self._start, self._size, threads, self.nanoseconds)
        if self._size > _KEPT:
            self._room, self._start, self._size = torch.empty(0, dtype=torch.uint8), 0, 0
        return x


def _layer(layer: LayerTensors) -> _Layer:
    return _Layer(
        *(_address(t) for t in (layer.input_norm, layer.attention_norm, layer.q_norm, layer.k_norm)),
        *(_matrix(m) for m in (layer.qkv, layer.out, layer.gate_up, layer.down)),
        *(layer.k_cache.data_ptr(), layer.v_cache.data_ptr(), layer.window or 0, layer.scale, layer.softcap or 0.0),
    )


def _integers(values: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    return (_SIZE * len(values))(*values)


def _span(span: Span, lengths: ctypes.Array[ctypes.c_int64]) -> _Span:
    tables = span.tables
    address = ctypes.addressof(lengths)
    return _Span(span.first, len(lengths), span.tokens, tables.data_ptr(), tables.stride(0), address)


def _matrix(matrix: Matrix) -> _Matrix:
    outputs, inputs = matrix.weight.shape
    addresses = (_address(tensor) for tensor in (matrix.weight, matrix.scale, matrix.bias))
    return _Matrix(*addresses, inputs, outputs, matrix.weight.stride(0))


def _address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
