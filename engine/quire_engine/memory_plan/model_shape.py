"""The sizes of a decoder, read from a checkpoint's config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from quire_engine.memory_plan.architectures import normalised
from quire_engine.memory_plan.config_fields import positive_int
from quire_engine.memory_plan.image_encoders import image_sizes

BYTES_OF_DTYPE = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What memory and arithmetic depend on. Sizes are numbers of elements."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    kv_width: int  # what the cache holds of a token for each KV head: key and value, a latent vector, or nothing
    num_experts: int  # 1 where there are none
    experts_per_token: int
    expert_size: int  # the inner size of each
    max_position_embeddings: int
    dtype: str  # of the checkpoint: float32, float16 or bfloat16
    tied_embeddings: bool
    writes_scores: bool = False  # torch has no fused attention for such scores: soft-capped, or with ALiBi
    image_tokens: int = 0  # of the largest image; 0 where none is taken
    image_elements: int = 0  # that are there at once while it is encoded
    image_pixels: int = 0  # values of what is made of it for the encoder

    @staticmethod
    def from_config(config: Mapping[str, object]) -> ModelShape:
        """Read config.json's content as `normalised` gives it. Raises `ValueError` that names a field that is wrong."""
        architectures = config.get("architectures")
        if not isinstance(architectures, list) or not architectures or not isinstance(architectures[0], str):
            raise ValueError('config.json has no "architectures": it must name the model\'s class')
        num_heads = positive_int(config, "num_attention_heads")
        hidden_size = positive_int(config, "hidden_size")
        num_kv_heads = positive_int(config, "num_key_value_heads", default=num_heads)
        if num_heads % num_kv_heads:
            raise ValueError(f"config.json: {num_heads} attention heads do not divide into {num_kv_heads} KV heads")
        dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
        if dtype not in BYTES_OF_DTYPE:
            raise ValueError(f"config.json: dtype is {dtype!r}: it must be one of {', '.join(BYTES_OF_DTYPE)}")
        head_dim = positive_int(config, "head_dim", default=hidden_size // num_heads)
        intermediate_size = positive_int(config, "intermediate_size")
        images = image_sizes(config, architectures[0], hidden_size)
        return ModelShape(
            architecture=architectures[0],
            vocab_size=positive_int(config, "vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_layers=positive_int(config, "num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            kv_width=0 if config.get("kv_width") == 0 else positive_int(config, "kv_width", default=2 * head_dim),
            num_experts=positive_int(config, "num_experts", default=1),
            experts_per_token=positive_int(config, "num_experts_per_tok", default=1),
            expert_size=positive_int(config, "moe_intermediate_size", default=intermediate_size),
            max_position_embeddings=positive_int(config, "max_position_embeddings", default=2048),
            dtype=dtype,
            tied_embeddings=bool(config.get("tie_word_embeddings", False)),
            writes_scores=bool(config.get("writes_scores", False)),
            image_tokens=0 if images is None else images.tokens,
            image_elements=0 if images is None else images.elements,
            image_pixels=0 if images is None else images.pixels,
        )

    @staticmethod
    def of_known_architecture(config: Mapping[str, object]) -> ModelShape:
        """As `from_config`, for the first of the architectures that is known. Raises `ValueError` when none is."""
        return ModelShape.from_config(normalised(config))

    def can_split(self, tensor: int) -> bool:
        """Whether `tensor` GPUs can share each layer: whole heads, and whole or repeated KV heads on each."""
        whole_kv = self.num_kv_heads % tensor == 0 or tensor % self.num_kv_heads == 0
        whole_inner = self.intermediate_size % tensor == 0 and self.expert_size % tensor == 0
        return self.num_heads % tensor == 0 and whole_kv and whole_inner

    def shard(self, tensor: int) -> ModelShape:
        """The part of each layer that one of `tensor` GPUs holds. Hidden states and logits are whole on each."""
        return replace(
            self,
            num_heads=self.num_heads // tensor,
            num_kv_heads=max(1, self.num_kv_heads // tensor),
            intermediate_size=self.intermediate_size // tensor,
            expert_size=self.expert_size // tensor,
        )

    def kv_bytes_per_token(self, dtype: str | None = None) -> int:
        """Bytes of keys and values that one token takes in all layers, stored as `dtype` or the checkpoint's."""
        return self.num_layers * self.kv_bytes_per_token_and_layer(dtype)

    def kv_bytes_per_token_and_layer(self, dtype: str | None = None) -> int:
        return self.num_kv_heads * self.kv_width * BYTES_OF_DTYPE[dtype or self.dtype]

    def weight_bytes(self, dtype: str | None = None) -> int:
        """Bytes of the weight matrices, computed from the sizes. Leaves out norms and biases."""
        attention = self.hidden_size * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        mlp = 3 * self.hidden_size * self.intermediate_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tied_embeddings else 2)
        return (self.num_layers * (attention + mlp) + embeddings) * BYTES_OF_DTYPE[dtype or self.dtype]


def serving_dtype(wanted: str, of_checkpoint: str, *, on_gpu: bool) -> str:
    """The name of the dtype that weights, activations and the KV cache have, for --dtype."""
    if wanted != "auto":
        return wanted
    return "bfloat16" if of_checkpoint == "float32" and on_gpu else of_checkpoint
