"""Which decoders have their layers run by one call of the library for CPUs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from quire_engine.attention.context import AttentionContext
from quire_engine.attention.paged_attention import PagedAttention
from quire_engine.core.step import NO_TOKEN
from quire_engine.kernels import cpu
from quire_engine.kernels.cpu_layers import AllLayers, LayerTensors, Logits, Matrix, Norms, Rotation, Span
from quire_engine.layers.activation import ACTIVATIONS
from quire_engine.layers.embedding import Embedding
from quire_engine.layers.linear import ByKernel, Linear
from quire_engine.layers.norm import OffsetRMSNorm, RMSNorm
from quire_engine.layers.rotary import RotaryEmbedding
from quire_engine.models.attention_block import Attention
from quire_engine.models.decoder_layer import PreNormLayer
from quire_engine.models.mlp_block import GatedMLP

_NORMS = (RMSNorm, OffsetRMSNorm)
_MOST_LOGITS = 64  # rows, beyond which the head by itself loses nothing


class LayersTogether(nn.Module):
    """Runs the layers of a decoder as they would one by one.

    A module, so that what profiles a model can hook it: `nanoseconds` says where the time of its last call went.
    """

    def __init__(
        self,
        run: AllLayers,
        attention: PagedAttention,
        rotary: RotaryEmbedding,
        *,
        embeds: bool,
        normed: bool,
        vocab_size: int | None,
    ) -> None:
        """`attention` is that of a layer, without a window if there is one.

        With `embeds` tokens are embedded too, with `normed` the norm behind the last layer is run, and with
        `vocab_size` the head.
        """
        super().__init__()
        self.run, self.leaves_to_torch, self.embeds, self.normed = run, attention.leaves_to_torch, embeds, normed
        self._rotary = (rotary,)  # which is the decoder's module, and none of this one's
        self._vocab_size = vocab_size
        self._logits = torch.empty(0)  # of the last step, whose memory the next ones take

    @property
    def nanoseconds(self) -> dict[str, int]:
        linears, attention, head, _ = self.run.nanoseconds
        return {"linears": linears, "attention": attention} | ({"head": head} if head else {})

    def forward(self, inputs: torch.Tensor, positions: torch.Tensor, context: AttentionContext) -> torch.Tensor:
        """Tokens [num_tokens] int64 if it `embeds`, or their hidden states -> [num_tokens, hidden_size].

        Hidden states are changed in their place. Rows that the context does not want are nothing of use.
        """
        spans = [Span(one.first, one.count, one.blocks, [one.start + one.count]) for one in context.prefills]
        longest = max((one.start + one.count for one in context.prefills), default=0)
        if context.num_decodes:
            spans.insert(0, Span(0, 1, context.decode_blocks, context.decode_lengths))
            longest = max(longest, *context.decode_lengths)
        if context.asks_logits and self._vocab_size is not None:
            context.logits = self._room(len(inputs if context.wanted is None else context.wanted), self._vocab_size)
        rotation = self._rotation(positions, longest)
        return self.run(inputs, rotation, context.slots, spans, context.wanted, context.logits)

    def _room(self, rows: int, vocab_size: int) -> Logits | None:
        """For logits; None for more of them than are worth to be kept."""
        if not 0 < rows <= _MOST_LOGITS:
            return None
        if len(self._logits) != rows:
            self._logits = torch.empty(rows, vocab_size, dtype=torch.bfloat16)
        # Tokens are read when the next step is under way.
        return Logits(self._logits, torch.empty(rows, dtype=torch.int64), NO_TOKEN)

    def _rotation(self, positions: torch.Tensor, longest: int) -> Rotation:
        (rotary,) = self._rotary
        table = rotary.table(longest, torch.bfloat16)
        return Rotation(*rotary(positions, torch.bfloat16)) if table is None else Rotation(*table, positions)

    def takes(self, context: AttentionContext) -> bool:
        """Whether nothing of a batch goes faster layer by layer."""
        return not any(self.leaves_to_torch(span) for span in context.prefills)


def layers_together(
    layers: Sequence[nn.Module],
    rotary: nn.Module,
    library: cpu.Library,
    *,
    embedding: nn.Module | None = None,
    norm: nn.Module | None = None,
    head: Embedding | None = None,
) -> LayersTogether | None:
    """None where a layer is not plain: whatever it has that is not known here keeps its own code.

    `embedding` is all that comes before the first layer, `norm` what comes behind the last one, and `head` all that
    makes logits of that. They are run too where they are plain and, the norm, as those within.

    To be called when weights and caches are where they stay.
    """
    if not cpu.multiplies or not isinstance(rotary, RotaryEmbedding):
        return None
    tensors = [_tensors(layer, library) for layer in layers]
    plain = [one for one in tensors if one is not None]
    if not plain or len(plain) < len(tensors) or len({_sizes(one) for one in plain}) > 1:
        return None
    first = [_norms(layer, ("input_layernorm", "post_attention_layernorm")) for layer in layers]
    heads = [_norms(layer.get_submodule("self_attn"), ("q_norm", "k_norm")) for layer in layers]
    norms = first[0]
    if norms is None or any(one != norms for one in first) or any(one != heads[0] for one in heads):
        return None
    if plain[0].q_norm is not None and heads[0] is None:  # they differ
        return None
    found = [layer.get_submodule("self_attn").attend for layer in layers]
    attentions = [one for one in found if isinstance(one, PagedAttention)]
    attention = next((one for one in attentions if one.window is None), attentions[0])
    last = None
    if norm is not None and type(norm) in _NORMS and _norms_of([norm]) == norms:
        last = norm.get_parameter("weight")
    last = last if last is not None and last.dtype == torch.bfloat16 else None
    tokens, logits = _embedding(embedding), None if last is None else _head(head)
    run = AllLayers(library, plain, norms, heads[0], last, tokens, logits)
    vocab_size = None if logits is None else len(logits.weight)
    embeds, normed = tokens is not None, last is not None
    return LayersTogether(run, attention, rotary, embeds=embeds, normed=normed, vocab_size=vocab_size)


def _embedding(module: nn.Module | None) -> torch.Tensor | None:
    if type(module) is not Embedding or module.ranks.size > 1:
        return None
    weight = module.weight
    return weight if weight.dtype == torch.bfloat16 and weight.is_contiguous() and weight.device.type == "cpu" else None


def _head(module: Embedding | None) -> Matrix | None:
    weight = _embedding(module)
    if module is None or weight is None or (module.bias is not None and module.bias.dtype != torch.bfloat16):
        return None
    return Matrix(weight, None, module.bias)


def _tensors(layer: nn.Module, library: cpu.Library) -> LayerTensors | None:
    if type(layer) is not PreNormLayer or type(layer.self_attn) is not Attention or type(layer.mlp) is not GatedMLP:
        return None
    attention, mlp = layer.self_attn, layer.mlp
    paged = attention.attend
    linears = attention.qkv_proj, attention.o_proj, mlp.gate_up_proj, mlp.down_proj
    matrices = [_matrix(linear, library) for linear in linears]
    found = [matrix for matrix in matrices if matrix is not None]
    if type(paged) is not PagedAttention or len(found) < len(matrices) or mlp.activation is not ACTIVATIONS["silu"]:
        return None
    if attention.clip is not None or getattr(attention, "by_neighbours", True) or not paged.suits_library:
        return None
    norms = layer.input_layernorm, layer.post_attention_layernorm, attention.q_norm, attention.k_norm
    if any(type(norm) not in _NORMS for norm in norms if norm is not None):
        return None
    weights = [None if norm is None else norm.get_parameter("weight") for norm in norms]
    if any(t.dtype != torch.bfloat16 for t in (paged.k_cache, *weights) if t is not None):
        return None
    assert weights[0] is not None
    assert weights[1] is not None
    return LayerTensors(
        input_norm=weights[0],
        attention_norm=weights[1],
        q_norm=weights[2],
        k_norm=weights[3],
        qkv=found[0],
        out=found[1],
        gate_up=found[2],
        down=found[3],
        k_cache=paged.k_cache,
        v_cache=paged.v_cache,
        window=paged.window,
        scale=paged.scale,
        softcap=paged.softcap,
    )


def _matrix(linear: Linear, library: cpu.Library) -> Matrix | None:
    """None where ranks share the linear, its method is another, or something was hung on it."""
    ranks = getattr(linear, "ranks", None)
    if (ranks is not None and ranks.size > 1) or not isinstance(linear.method, ByKernel):
        return None
    weight, scale = linear.method.operands(linear)
    others = [t for t in (scale, linear.bias) if t is not None]
    fits = weight.dtype == (torch.bfloat16 if scale is None else torch.int8)
    fits = fits and (scale is None or library.takes_int8(linear.in_features))
    fits = fits and (linear.bias is None or linear.bias.dtype == torch.bfloat16)
    fits = fits and (cpu.rows_are_whole(weight) if scale is None else weight.is_contiguous())
    fits = fits and all(t.is_contiguous() for t in others) and all(t.device.type == "cpu" for t in (weight, *others))
    return Matrix(weight, scale, linear.bias) if fits else None


def _norms(module: nn.Module, names: tuple[str, str]) -> Norms | None:
    """What the norms of these names have in common, where they are there and alike."""
    return _norms_of([getattr(module, name) for name in names])


def _norms_of(found: Sequence[object]) -> Norms | None:
    alike = {Norms(eps=norm.eps, offset=norm.offset) for norm in found if isinstance(norm, RMSNorm)}
    return alike.pop() if len(alike) == 1 else None


def _sizes(layer: LayerTensors) -> tuple[object, ...]:
    matrices = (layer.qkv, layer.out, layer.gate_up, layer.down)
    return (*(m.weight.shape for m in matrices), layer.k_cache.shape, layer.q_norm is None)
