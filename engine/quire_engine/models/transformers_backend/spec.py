"""What the engine needs to know of a model of transformers before its weights are there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quire_engine.memory_plan.context_length import longest_context
from quire_engine.memory_plan.model_shape import ModelShape

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Tokens that a model may be given which knows no limit of its own, such as Mamba, where --max-model-len is unset.
_UNLIMITED = 8192


@dataclass(frozen=True, kw_only=True)
class TransformersSpec:
    """A config as transformers reads it, and the sizes in it."""

    config: PreTrainedConfig
    shape: ModelShape
    longest: int  # tokens that its positions cover
    vision: None = None  # as `DecoderSpec` has it: no images here

    @staticmethod
    def from_directory(directory: Path, written: Mapping[str, object], *, trust_remote_code: bool) -> TransformersSpec:
        """Have transformers read config.json, whose content is `written`.

        Raises `ValueError` for a class that is no decoder of transformers, and for sizes that are missing.
        """
        architectures = written.get("architectures")
        if not isinstance(architectures, list) or not architectures:
            raise ValueError('config.json has no "architectures": it must name the model\'s class')
        architecture = str(architectures[0])
        from transformers import AutoConfig, __version__
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

        try:
            config = AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)
        except Exception as error:  # noqa: BLE001  each config class raises what it likes
            raise ValueError(
                f"{directory}/config.json is not one that transformers {__version__} reads: {error}"
            ) from None
        remote = trust_remote_code and "AutoModelForCausalLM" in getattr(config, "auto_map", {})
        known = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), ())
        names = [cls.__name__ for cls in (known if isinstance(known, tuple) else (known,)) if cls is not None]
        if architecture not in names and not remote:
            instead = f"it knows model_type {config.model_type!r} as {names[0]}" if names else "it is no decoder there"
            raise ValueError(
                f"the architecture {architecture} is not one that transformers {__version__} runs: {instead}"
            )
        shape = _shape(config, architecture, written.get("dtype") or written.get("torch_dtype"))
        longest = longest_context(config.to_dict(), shape.max_position_embeddings)
        return TransformersSpec(config=config, shape=shape, longest=longest)


def _shape(config: PreTrainedConfig, architecture: str, dtype: object) -> ModelShape:
    text = config.get_text_config(decoder=True)

    def size(*names: str, default: int | None = None) -> int | None:
        for name in names:
            value = getattr(text, name, None)
            if isinstance(value, list | tuple) and value:
                value = max(value)  # a size that differs by layer
            if isinstance(value, int) and value > 0:
                return value
        return default

    hidden = size("hidden_size")
    sizes = {
        "architectures": [architecture],
        "vocab_size": size("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": size("intermediate_size", "ffn_dim", "ffn_hidden_size", default=4 * (hidden or 0)),
        "num_hidden_layers": size("num_hidden_layers"),
        "num_attention_heads": size("num_attention_heads", default=1),
        "head_dim": size("head_dim"),
        "max_position_embeddings": size("max_position_embeddings", "max_seq_len", "seq_length", default=_UNLIMITED),
        "dtype": dtype,
        "tie_word_embeddings": config.tie_word_embeddings,
    }
    return ModelShape.from_config(sizes)
