"""Which family a checkpoint's `architectures` means."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from quire_engine.models.decoder import DecoderSpec
from quire_engine.models.llama import llama
from quire_engine.models.mistral import mistral
from quire_engine.models.qwen2 import qwen2
from quire_engine.models.qwen3 import qwen3

FAMILIES: dict[str, Callable[[Mapping[str, object]], DecoderSpec]] = {
    "LlamaForCausalLM": llama,
    "MistralForCausalLM": mistral,
    "Qwen2ForCausalLM": qwen2,
    "Qwen3ForCausalLM": qwen3,
}


def has_family(config: Mapping[str, object]) -> bool:
    """Whether one of a config.json's architectures is a family of ours."""
    architectures = config.get("architectures")
    return any(name in FAMILIES for name in architectures) if isinstance(architectures, list) else False


def decoder_spec(config: Mapping[str, object]) -> DecoderSpec:
    """The spec of a config.json. Raises `ValueError` for an unknown architecture or an unsupported setting."""
    architectures = config.get("architectures")
    names = architectures if isinstance(architectures, list) else []
    for name in names:
        if name in FAMILIES:
            return FAMILIES[name]({**config, "architectures": [name]})
    if not names:
        raise ValueError('config.json has no "architectures": it must name the model\'s class')
    raise ValueError(f"the architecture {names[0]} is not supported: use one of {', '.join(FAMILIES)}")
