"""How a checkpoint is quantized, read from what its authors' tools wrote into config.json."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from quire_engine.memory_plan.safetensors_header import TensorHeader

# What --quantization may be. Some of vLLM's names mean a kernel, or the tool that wrote the checkpoint.
SCHEME_OF_FLAG = {
    "awq": "awq",
    "awq_marlin": "awq",
    "gptq": "gptq",
    "gptq_marlin": "gptq",
    "fp8": "fp8",
    "fbgemm_fp8": "fp8",
    "compressed-tensors": "fp8",
    "int8": "int8",
}
ROUNDED = ("fp8", "int8")  # what float weights can become while they are loaded
WHAT_IS_THERE = "awq and gptq of 4 bits, gptq of 2 and 8 bits, and fp8 (e4m3)"

# Tensors that go with quantized ones and are not needed: scales of activations and of the KV cache, which were
# measured while quantizing. Weights are multiplied in the activations' own type.
UNUSED = (
    ".input_scale",
    ".input_scale_ub",
    ".activation_scale",
    ".output_scale",
    ".k_scale",
    ".v_scale",
    ".q_scale",
    ".kv_scale",
)

# Types and endings of weights that only a quantizer writes.
_OF_QUANTIZED = ("F8_E4M3", "F8_E5M2", "I8", "U8", "I32")
_WEIGHTS = (".weight", ".qweight", ".weight_packed")

_LARGEST_GROUP = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Fp8:
    """e4m3 weights, w = stored x scale. A scale covers `block`'s rows and columns; None stands for all of them."""

    block: tuple[int | None, int | None]
    scale: str  # how its tensor ends: weight_scale or weight_scale_inv
    skipped: tuple[str, ...] = ()
    scheme: str = "fp8"


@dataclass(frozen=True, kw_only=True)
class Awq:
    """4 bits, w = (stored - zero) x scale by groups of inputs, packed along outputs (Lin et al., "AWQ")."""

    group_size: int | None  # None: all inputs are one group
    skipped: tuple[str, ...] = ()
    scheme: str = "awq"


@dataclass(frozen=True, kw_only=True)
class Gptq:
    """As AWQ in `bits` bits, packed along inputs; with `act_order` groups are of inputs that lie apart."""

    bits: int
    group_size: int | None  # None: all inputs are one group
    act_order: bool
    zero_offset: int  # what the stored zero points lack: 1 in the format's first version
    skipped: tuple[str, ...] = ()
    scheme: str = "gptq"


@dataclass(frozen=True, kw_only=True)
class OfFloats:
    """Float weights that are rounded to `scheme` while they are loaded, with a scale for each row."""

    skipped: tuple[str, ...] = ("gate", "router", "shared_expert_gate")  # small, and the choice of experts hangs on it
    scheme: str  # one of ROUNDED


Quantization = Fp8 | Awq | Gptq | OfFloats


def served_quantization(wanted: str | None, found: Quantization | None) -> Quantization | None:
    """What weights become that are `found` in a checkpoint, with `wanted` for --quantization.

    Raises `ValueError` where these do not go together.
    """
    if wanted is None or (found is not None and found.scheme == SCHEME_OF_FLAG[wanted]):
        return found
    if found is None and wanted in ROUNDED:
        return OfFloats(scheme=wanted)
    has = "is not quantized" if found is None else f"is quantized by {found.scheme}"
    raise ValueError(f"--quantization is {wanted} and the checkpoint {has}: leave the flag out")


def quantization_of(config: Mapping[str, object]) -> Quantization | None:
    """Of a config.json's content. Raises `ValueError` that names a scheme or a setting that is not there."""
    settings = config.get("quantization_config") or config.get("compression_config")
    if not settings:
        return None
    if not isinstance(settings, dict):
        raise ValueError(f"config.json: quantization_config is {settings!r}: it must be an object")
    method = settings.get("quant_method")
    reader = _READERS.get(method) if isinstance(method, str) else None
    if reader is None:
        raise ValueError(f"config.json: quant_method {method!r} is not supported: there are {WHAT_IS_THERE}")
    return reader(settings)


def unexplained_weight(tensors: Mapping[str, TensorHeader]) -> str | None:
    """The first quantized weight of a checkpoint whose settings name no quantization, in words; None without one."""
    for name, tensor in tensors.items():
        if tensor.dtype in _OF_QUANTIZED and name.endswith(_WEIGHTS):
            what = f"{name} of type {tensor.dtype}"
            return f"{what}: its weights are quantized, and nothing says how: config.json has no quantization_config"
    return None


def _fp8(settings: Mapping[str, object]) -> Quantization:
    fmt = settings.get("fmt", "e4m3")
    if fmt not in ("e4m3", "float8_e4m3fn"):
        raise _unsupported("fmt", fmt, "e4m3")
    _check_activations(settings.get("activation_scheme", "dynamic"))
    block = settings.get("weight_block_size")
    if block is None:
        return Fp8(block=(None, None), scale="weight_scale", skipped=_skipped(settings))
    return Fp8(block=_block(block, "weight_block_size"), scale="weight_scale_inv", skipped=_skipped(settings))


def _fbgemm_fp8(settings: Mapping[str, object]) -> Quantization:
    return Fp8(block=(1, None), scale="weight_scale", skipped=_skipped(settings))


def _compressed_tensors(settings: Mapping[str, object]) -> Quantization:
    """What llm-compressor writes, where its one group of layers has FP8 weights."""
    groups = settings.get("config_groups")
    schemes = list(groups.values()) if isinstance(groups, dict) else []
    if len(schemes) != 1 or not isinstance(schemes[0], dict):
        raise _unsupported("config_groups", f"of {len(schemes)} groups", "one group")
    scheme = schemes[0]
    if scheme.get("targets") != ["Linear"]:
        raise _unsupported("targets", scheme.get("targets"), '["Linear"]')
    weights = scheme.get("weights")
    if not isinstance(weights, dict):
        raise _unsupported("weights", weights, "8 bits of type float")
    if (weights.get("num_bits"), weights.get("type")) != (8, "float"):
        what = f"of {weights.get('num_bits')!r} bits and type {weights.get('type')!r}"
        raise _unsupported("compressed-tensors weights", what, "8 bits of type float")
    block: tuple[int | None, int | None]
    match weights.get("strategy"):
        case "tensor":
            block = (None, None)
        case "channel":
            block = (1, None)
        case "block":
            block = _block(weights.get("block_structure"), "block_structure")
        case strategy:
            raise _unsupported("strategy", strategy, "tensor, channel or block")
    return Fp8(block=block, scale="weight_scale", skipped=_names(settings, "ignore"))


def _awq(settings: Mapping[str, object]) -> Quantization:
    # transformers calls `format` what AutoAWQ calls `version`.
    version = settings.get("version") or settings.get("format") or "gemm"
    if str(version).lower() != "gemm":
        raise _unsupported("version", version, "gemm")
    bits = settings.get("bits", settings.get("w_bit"))
    if bits != 4:
        raise _unsupported("awq's bits", bits, "4")
    if settings.get("zero_point", True) is not True:
        raise _unsupported("zero_point", settings.get("zero_point"), "true")
    group_size = settings.get("group_size", settings.get("q_group_size"))
    return Awq(group_size=_group_size(group_size), skipped=_skipped(settings))


def _gptq(settings: Mapping[str, object]) -> Quantization:
    bits = settings.get("bits")
    if bits not in (2, 4, 8) or not isinstance(bits, int):
        raise _unsupported("gptq's bits", bits, "2, 4 or 8")
    version = settings.get("checkpoint_format") or "gptq"
    if version not in ("gptq", "gptq_v2"):
        raise _unsupported("checkpoint_format", version, "gptq or gptq_v2")
    if settings.get("lm_head"):
        raise _unsupported("lm_head", settings["lm_head"], "an output head that is not quantized")
    if settings.get("dynamic"):
        raise _unsupported("dynamic", "set", "the same settings for all layers")
    act_order = settings.get("desc_act", False)
    if not isinstance(act_order, bool):
        raise _unsupported("desc_act", act_order, "true or false")
    return Gptq(
        bits=bits,
        group_size=_group_size(settings.get("group_size")),
        act_order=act_order,
        zero_offset=1 if version == "gptq" else 0,
        skipped=_skipped(settings),
    )


_READERS = {
    "awq": _awq,
    "gptq": _gptq,
    "fp8": _fp8,
    "fbgemm_fp8": _fbgemm_fp8,
    "compressed-tensors": _compressed_tensors,
}


def _check_activations(scheme: object) -> None:
    if scheme not in ("dynamic", "static"):
        raise _unsupported("activation_scheme", scheme, "dynamic or static")


def _block(value: object, name: str) -> tuple[int, int]:
    if isinstance(value, str):  # "128x128"
        value = [int(side) if side.isdecimal() else side for side in value.split("x")]
    match value:
        case [int(rows), int(columns)] if 0 < rows <= _LARGEST_GROUP and 0 < columns <= _LARGEST_GROUP:
            return rows, columns
    raise _unsupported(name, value, f"two whole numbers from 1 to {_LARGEST_GROUP}")


def _group_size(value: object) -> int | None:
    if value == -1:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= _LARGEST_GROUP:
        raise _unsupported("group_size", value, f"-1 or a whole number from 1 to {_LARGEST_GROUP}")
    return value


def _skipped(settings: Mapping[str, object]) -> tuple[str, ...]:
    return _names(settings, "modules_to_not_convert") + _names(settings, "ignored_layers")


def _names(settings: Mapping[str, object], name: str) -> tuple[str, ...]:
    value = settings.get(name) or []
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise _unsupported(name, value, "a list of layers' names")
    for entry in value:
        if entry.startswith("re:"):
            try:
                re.compile(entry[3:])
            except re.error as error:
                raise _unsupported(name, entry, f"a regular expression ({error})") from None
    return tuple(value)


def _unsupported(name: str, value: object, supported: str) -> ValueError:
    shown = value if isinstance(value, str) else repr(value)
    return ValueError(f"config.json: quantization_config: {name} {shown} is not supported: only {supported}")


def skips(quantization: Quantization, path: str) -> bool:
    """Whether a layer's weights are named as not quantized: by its path, a part of it, or an expression after re:."""
    for entry in quantization.skipped:
        if entry.startswith("re:"):
            if re.match(entry[3:], path):
                return True
        elif f".{entry}." in f".{path}.":
            return True
    return False
