"""The decoder that all families share. A family is a function from config.json to a `DecoderSpec`: see its own file."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from quire_engine.attention.context import current_context
from quire_engine.core.rotation import RotationByLength
from quire_engine.distributed.ranks import pipeline_stage
from quire_engine.kernels import cpu
from quire_engine.layers.embedding import Embedding, PositionTable
from quire_engine.layers.linear import Linear
from quire_engine.layers.norm import NormSpec
from quire_engine.layers.rotary import RopeSettings, RotaryEmbedding, rotary_embedding
from quire_engine.memory_plan.context_length import longest_context
from quire_engine.memory_plan.model_shape import ModelShape
from quire_engine.models.decoder_layer import LayerSpec
from quire_engine.models.language_model import ImageInputs, ImageRows, LanguageModel
from quire_engine.models.layers_together import LayersTogether, layers_together
from quire_engine.models.naming import LLAMA_NAMES, Naming
from quire_engine.models.settings import Config
from quire_engine.models.vision import VisionSpec


@dataclass(frozen=True, kw_only=True)
class EmbeddingSpec:
    """How tokens become the first hidden states."""

    multiplier: float = 1.0
    rounded: bool = False  # the multiplier has the weights' precision
    size: int | None = None  # where it is not the hidden size: it is projected up, and down again before the head
    learned_positions: int = 0  # of a second table, added; its first `first_position` rows are unused
    first_position: int = 0
    token_types: int = 0  # rows of a third table, of which all tokens have the first one added
    norm: NormSpec | None = None


@dataclass(frozen=True, kw_only=True)
class DecoderSpec:
    """The sizes of a decoder and what sets its family apart."""

    shape: ModelShape
    layers: tuple[LayerSpec, ...]
    norm: NormSpec | None  # after the last layer
    longest: int  # positions that the model covers
    embedding: EmbeddingSpec = field(default_factory=EmbeddingSpec)
    head_bias: bool = False
    logit_multiplier: float = 1.0
    logit_softcap: float | None = None
    naming: Naming = LLAMA_NAMES
    vision: VisionSpec | None = None

    @property
    def rotation(self) -> RotationByLength | None:
        """How sequences are rotated, where that depends on how long they are."""
        ropes = (layer.attention.rope for layer in self.layers)
        return next((rope.by_length for rope in ropes if rope is not None and rope.by_length is not None), None)

    @staticmethod
    def of(
        config: Config,
        layers: LayerSpec | tuple[LayerSpec, ...],
        *,
        embedding: EmbeddingSpec | None = None,
        head_bias: bool = False,
        logit_multiplier: float = 1.0,
        logit_softcap: float | None = None,
        naming: Naming = LLAMA_NAMES,
    ) -> DecoderSpec:
        """What all families read alike from a normalised config.json. One layer stands for all."""
        shape = ModelShape.from_config(config)
        if head_bias and shape.tied_embeddings:
            raise ValueError(
                "config.json: tie_word_embeddings is true and the head has a bias: only false is supported"
            )
        layers = (layers,) * shape.num_layers if isinstance(layers, LayerSpec) else layers
        return DecoderSpec(
            shape=shape,
            layers=layers,
            norm=layers[0].norm,
            longest=longest_context(config, shape.max_position_embeddings),
            embedding=embedding or EmbeddingSpec(),
            head_bias=head_bias,
            logit_multiplier=logit_multiplier,
            logit_softcap=logit_softcap,
            naming=naming,
        )


class InputEmbedding(nn.Module):
    """Makes hidden states of tokens where an `Embedding` alone does not."""

    def __init__(self, spec: EmbeddingSpec, hidden_size: int) -> None:
        super().__init__()
        scale = spec.multiplier
        if spec.rounded:
            scale = float(torch.tensor(scale, dtype=torch.get_default_dtype(), device="cpu"))
        self.scale = None if scale == 1.0 else scale
        self.project_in = None if spec.size is None else Linear(spec.size, hidden_size)
        self.first_position = spec.first_position
        rows = spec.learned_positions + spec.first_position
        self.positions = PositionTable(rows, hidden_size) if spec.learned_positions else None
        self.token_types = PositionTable(spec.token_types, hidden_size) if spec.token_types else None
        self.norm = None if spec.norm is None else spec.norm.build(hidden_size)

    def forward(self, embedded: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """[num_tokens, size] and [num_tokens] int64 -> [num_tokens, hidden_size]."""
        x = embedded
        if self.project_in is not None:
            x = self.project_in(x)
        if self.scale is not None:
            x = x * self.scale
        if self.positions is not None:
            x = x + self.positions(positions + self.first_position)
        if self.token_types is not None:
            x = x + self.token_types.weight[0]
        if self.norm is not None:
            x = self.norm(x)
        return x


class Decoder(nn.Module):
    """The layers of one pipeline stage; the first has the embedding too, and the last the final norm."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        hidden_size, self.stage = spec.shape.hidden_size, pipeline_stage()
        self.embed_tokens = None
        if self.stage.first or (self.stage.last and spec.shape.tied_embeddings):
            self.embed_tokens = Embedding(spec.shape.vocab_size, spec.embedding.size or hidden_size)
        self.embed = None
        if self.stage.first and spec.embedding != EmbeddingSpec():
            self.embed = InputEmbedding(spec.embedding, hidden_size)
        ropes: list[RopeSettings | None] = []  # the different ones, and which of them each layer has
        for layer in spec.layers:
            if layer.attention.rope not in ropes:
                ropes.append(layer.attention.rope)
        self.rotaries = nn.ModuleList(nn.Identity() if r is None else rotary_embedding(r) for r in ropes)
        numbers = self.stage.layers(len(spec.layers))
        self.rotary_of = [ropes.index(spec.layers[i].attention.rope) for i in numbers]
        self.layers = nn.ModuleDict({str(i): spec.layers[i].build(spec.shape) for i in numbers})
        self.norm = spec.norm.build(hidden_size) if spec.norm is not None and self.stage.last else None
        self.heads: tuple[Embedding, ...] = ()  # all that makes logits of hidden states, which is no module of this one
        self.together: LayersTogether | None = None
        self.together_by: cpu.Library | None = None

    def forward(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        hidden: torch.Tensor | None = None,
        images: ImageRows | None = None,
    ) -> torch.Tensor:
        together = self._together(token_ids, hidden)
        x = hidden
        if x is None and (images is not None or together is None or not together.embeds):
            x = self._embedded(token_ids, positions, images)
        if together is not None:
            x = together(token_ids if x is None else x, positions, current_context())
        else:
            assert x is not None
            rotations = [r(positions, x.dtype) if isinstance(r, RotaryEmbedding) else None for r in self.rotaries]
            for layer, rotary in zip(self.layers.values(), self.rotary_of, strict=True):
                x = layer(x, rotations[rotary])
        normed = together is not None and together.normed
        if self.norm is not None and not normed:
            x = self.norm(x)
        out: torch.Tensor = x
        return out

    def _together(self, token_ids: torch.Tensor, hidden: torch.Tensor | None) -> LayersTogether | None:
        """What runs all layers at once for such a batch, where there is such a thing."""
        like = hidden
        if like is None:
            assert self.embed_tokens is not None
            like = self.embed_tokens.weight
        library = cpu.library_for(like)
        if library is None or like.dtype != torch.bfloat16 or len(set(self.rotary_of)) != 1:
            return None
        if not 0 < len(token_ids) <= library.most_together:
            return None
        if self.together_by is not library:  # the first time, when weights and caches are where they stay
            layers, rotary = [*self.layers.values()], self.rotaries[self.rotary_of[0]]
            embedding = None if self.embed is not None else self.embed_tokens
            head = self.heads[0] if self.heads else None
            self.together = layers_together(layers, rotary, library, embedding=embedding, norm=self.norm, head=head)
            self.together_by = library
        together = self.together
        return together if together is not None and together.takes(current_context()) else None

    def _embedded(self, token_ids: torch.Tensor, positions: torch.Tensor, images: ImageRows | None) -> torch.Tensor:
        assert self.embed_tokens is not None
        x: torch.Tensor = self.embed_tokens(token_ids)
        if images is not None:
            x = x.index_copy(0, images.rows, images.embedded)
        return x if self.embed is None else self.embed(x, positions)


class CausalLM(LanguageModel):
    """A decoder with its output head. Submodules carry the names that checkpoints of Llama have."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.spec, self.shape = spec, spec.shape
        self.model = Decoder(spec)
        self.vision = None
        if spec.vision is not None and self.model.stage.first:
            self.vision = spec.vision.build(spec.shape.hidden_size)
        shape, size = spec.shape, spec.embedding.size
        self.project_out = Linear(shape.hidden_size, size) if size is not None and self.model.stage.last else None
        self.lm_head = None
        if self.model.stage.last and not shape.tied_embeddings:
            self.lm_head = Embedding(shape.vocab_size, size or shape.hidden_size, bias=spec.head_bias)
        head = self.model.embed_tokens if self.lm_head is None else self.lm_head
        plain = size is None and spec.logit_multiplier == 1.0 and spec.logit_softcap is None
        if plain and head is not None and self.model.stage.last:
            self.model.heads = (head,)

    def forward(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        hidden: torch.Tensor | None = None,
        *,
        images: ImageRows | None = None,
    ) -> torch.Tensor:
        """[num_tokens] and [num_tokens] int64 -> hidden states [num_tokens, hidden_size]. Needs a context.

        `hidden`, of the same shape as the result, is what the stage before this one made.
        """
        out: torch.Tensor = self.model(token_ids, positions, hidden, images)
        return out

    def embed_image(self, inputs: ImageInputs) -> torch.Tensor:
        assert self.vision is not None
        out: torch.Tensor = self.vision(inputs)
        return out

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, hidden_size] -> [rows, vocab_size]. The last stage has them."""
        if self.project_out is not None:
            hidden = self.project_out(hidden)
        head = self.model.embed_tokens if self.lm_head is None else self.lm_head
        assert head is not None
        logits = head.logits(hidden)
        if self.spec.logit_multiplier != 1.0:
            logits = logits.float() * self.spec.logit_multiplier
        if self.spec.logit_softcap is not None:
            logits = torch.tanh(logits.float() / self.spec.logit_softcap) * self.spec.logit_softcap
        return logits
