"""The architectures that are known, and what their config.json calls the sizes: by Llama's names, the common ones."""

from __future__ import annotations

from quire_engine.memory_plan.config_fields import Config, positive_int
from quire_engine.memory_plan.families.architecture import Architecture
from quire_engine.memory_plan.families.dense import DENSE
from quire_engine.memory_plan.families.encoders import ENCODERS as _ENCODERS
from quire_engine.memory_plan.families.experts import WITH_EXPERTS
from quire_engine.memory_plan.families.images import WITH_IMAGES

_KNOWN = {**DENSE, **WITH_EXPERTS, **WITH_IMAGES}
ARCHITECTURES = tuple(_KNOWN)
_OTHER_SPELLINGS = {
    "MPTForCausalLM": "MptForCausalLM",
    "RWForCausalLM": "FalconForCausalLM",
    "LLaMAForCausalLM": "LlamaForCausalLM",
}
"""What authors call a class in files that are older than transformers' own."""

ENCODERS = tuple(_ENCODERS)
"""Those that see a prompt in both directions: they make embeddings alone."""


def normalised(config: Config) -> dict[str, object]:
    """config.json's content with the common names added, for the first of its architectures that is known.

    Raises `ValueError` when none is known, or when a size is missing or no whole number.
    """
    architectures = config.get("architectures")
    names = architectures if isinstance(architectures, list) else []
    for written in names:
        name = usual_spelling(written) if isinstance(written, str) else ""
        known = _known(name)
        if known is not None:
            read = _read(known, {**config, "architectures": [name]})
            return read | {"tie_word_embeddings": True} if makes_embeddings(name) else read
    if not names:
        raise ValueError('config.json has no "architectures": it must name the model\'s class')
    raise ValueError(f"config.json: the architecture {names[0]} is not supported: use one of {', '.join(_KNOWN)}")


def usual_spelling(architecture: str) -> str:
    """What the class of a config.json is called here; what is not known stays as it is."""
    return _OTHER_SPELLINGS.get(architecture, architecture)


def float32_tensors(architecture: str) -> tuple[str, ...]:
    """Endings of the tensors that an architecture's models keep in float32."""
    known = _known(architecture)
    return () if known is None else known.float32


def unused_tensors(architecture: str) -> tuple[str, ...]:
    """Beginnings of the tensors that stand in an architecture's checkpoints and are not loaded."""
    known = _known(architecture)
    return () if known is None else known.unused


def tower_tensors(architecture: str) -> tuple[str, ...]:
    """Beginnings of the tensors of an architecture's encoder of images."""
    known = _known(architecture)
    return () if known is None else known.tower


def with_head(architecture: str) -> str | None:
    """The decoder that a class without an output head, such as LlamaModel, is a part of; None where it is none."""
    base = architecture.removesuffix("Model") if architecture.endswith("Model") else None
    heads = () if base is None else (f"{base}ForCausalLM", f"{base}LMHeadModel")
    return next((name for name in heads if name in _KNOWN), None)


def makes_embeddings(architecture: str) -> bool:
    """Whether a class has nothing to generate text by: an encoder, or a decoder without its head."""
    return architecture in _ENCODERS or with_head(architecture) is not None


def without_head(architecture: str) -> str:
    """The other way round, as LlamaModel of LlamaForCausalLM; what has no head is itself."""
    return (
        f"{architecture.removesuffix('ForCausalLM').removesuffix('LMHeadModel')}Model"
        if architecture in _KNOWN
        else architecture
    )


def _known(name: str) -> Architecture | None:
    return _ENCODERS.get(name) or _KNOWN.get(with_head(name) or name)


def _read(architecture: Architecture, config: dict[str, object]) -> dict[str, object]:
    if architecture.decoders:
        return _read_decoder(architecture, config)
    for common, own in architecture.names.items():
        if config.get(own) is not None:
            config[common] = positive_int(config, own)
    result = {**architecture.defaults, **config}
    result |= architecture.derived(result)
    for common, own in architecture.names.items():
        if result.get(common) is None:
            raise ValueError(f"config.json has no {own!r}")
    return result


def _read_decoder(architecture: Architecture, config: dict[str, object]) -> dict[str, object]:
    """What the decoder's `text_config` says, among the whole model's own settings."""
    text = config.get("text_config")
    if text is None and architecture.flat:
        text = config
    if not isinstance(text, dict):
        raise ValueError(f"config.json: text_config is {text!r}: it must be an object")
    kind = text.get("model_type", "llama")
    if not isinstance(kind, str) or kind not in architecture.decoders:
        known = ", ".join(architecture.decoders)
        raise ValueError(f"config.json: text_config.model_type is {kind!r}: it must be one of {known}")
    name, defaults = architecture.decoders[kind]
    read = _read(_KNOWN[name], {**defaults, **text})
    dtype = next((c[key] for c in (config, text) for key in ("dtype", "torch_dtype") if c.get(key)), None)
    tied = bool(config.get("tie_word_embeddings") or text.get("tie_word_embeddings"))
    own = {"architectures": config["architectures"], "dtype": dtype, "tie_word_embeddings": tied}
    return {**config, **read, **own}
