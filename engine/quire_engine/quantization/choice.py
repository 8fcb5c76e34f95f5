"""Which of a model's linears are quantized, and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from quire_engine.layers.linear import Linear, LinearMethod, Unquantized
from quire_engine.memory_plan.quantization import UNUSED, Awq, Fp8, Gptq, OfFloats, Quantization, skips
from quire_engine.memory_plan.safetensors_header import TensorHeader
from quire_engine.models.naming import Naming
from quire_engine.quantization.awq import AwqLinear
from quire_engine.quantization.fp8 import Fp8Linear, Fp8WhileLoading
from quire_engine.quantization.gptq import GptqLinear
from quire_engine.quantization.int8 import Int8WhileLoading

Stored = Callable[[str], TensorHeader | None]


def methods_for(quantization: Quantization, stored: Stored | None) -> Callable[[str, Linear], LinearMethod]:
    """The method of each linear, by its path. Raises `ValueError` for one that is quantized in part.

    `stored` gives a tensor of the checkpoint by the name that it has here, or None. What is stored decides, since
    not all tools write down which layers they left alone; without it, or where it has neither, config.json does.
    """

    def method_for(path: str, layer: Linear) -> LinearMethod:
        if path.startswith("vision."):  # small beside the decoder, and all that it sees of an image
            return Unquantized()
        found = {_is_stored_quantized(quantization, name, stored): name for name in layer.names(path)}
        if True in found and False in found:
            raise ValueError(f"{found[True]} is quantized and {found[False]} is not: this is not supported")
        quantized = True in found or (False not in found and not skips(quantization, layer.names(path)[0]))
        return _method(quantization, path) if quantized else Unquantized()

    return method_for


def _is_stored_quantized(quantization: Quantization, path: str, stored: Stored | None) -> bool | None:
    """None where the checkpoint has no weight of this name."""
    if stored is not None and not isinstance(quantization, OfFloats):
        weight = stored(f"{path}.weight")
        if weight is not None:
            return weight.dtype == "F8_E4M3"
        if stored(f"{path}.qweight") is not None:
            return True
    return None


def _method(quantization: Quantization, path: str) -> LinearMethod:
    match quantization:
        case Fp8():
            return Fp8Linear(quantization)
        case OfFloats(scheme="int8"):
            return Int8WhileLoading()
        case OfFloats():
            return Fp8WhileLoading()
        case Awq():
            return AwqLinear(quantization, path)
        case Gptq():
            return GptqLinear(quantization, path)


def naming_with(quantization: Quantization, naming: Naming) -> Naming:
    """The names of a checkpoint that is quantized: with the tensors that are not needed then."""
    # AutoGPTQ writes a bias for every layer, of zeros where the model has none.
    zeros = (".bias",) if isinstance(quantization, Gptq) else ()
    return replace(naming, unused=naming.unused + UNUSED, unused_zeros=naming.unused_zeros + zeros)
