"""Finds out at start whether a model's attention can be Quire's, by trying it against the model's own."""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING

import torch
from torch import nn

from quire_engine.attention.context import AttentionContext, PrefillSpan, attention_context
from quire_engine.memory_plan.model_shape import ModelShape
from quire_engine.models.transformers_backend import paged
from quire_engine.models.transformers_backend.one_at_a_time import OneAtATime
from quire_engine.models.transformers_backend.outputs import HiddenStates
from quire_engine.models.transformers_backend.paged import AttentionCall, NotPluggableError, PagedTransformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

_LENGTH, _BLOCK_SIZE, _NUM_BLOCKS = 16, 8, 4
# Attention that is left out, or sees the wrong tokens, is off by about 1; rounding by far less than this.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.15}


def rehearse(model: PreTrainedModel, shape: ModelShape) -> PagedTransformers | OneAtATime:
    """The model with paged attention where that answers as its own does, else with its own cache.

    Raises `ValueError` for a model that can be run in neither way.
    """
    name, own = type(model).__name__, model.config._attn_implementation
    hidden = HiddenStates(model)
    try:
        _check_kind(model, hidden.base)
        result = _with_paged_attention(model, hidden, shape)
        log.info("%s runs by transformers, with Quire's paged attention", name)
        return result
    except NotPluggableError as error:
        reason = str(error)
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError) as error:
        # Whatever a model's code makes of an attention that it does not know.
        reason = f"with another attention it fails: {type(error).__name__}: {error}"
    _put_back(model, own)
    log.warning("%s runs by transformers alone, with its own cache, one request at a time: %s", name, reason)
    return OneAtATime(model, hidden, shape)


def _put_back(model: PreTrainedModel, attention: str) -> None:
    model.set_attn_implementation(attention)
    for module in model.modules():
        module._modules.pop("quire_attention", None)


def _check_kind(model: PreTrainedModel, base: nn.Module) -> None:
    """Raise `NotPluggableError` for what is known without a try."""
    if not model._supports_attention_backend:
        raise NotPluggableError("its attention cannot be replaced")
    if model._is_stateful:
        raise NotPluggableError("it keeps a state beside keys and values")
    if "position_ids" not in inspect.signature(base.forward).parameters:
        raise NotPluggableError("it computes positions itself")
    config = model.config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or []) - {"full_attention", "sliding_attention"}
    if kinds:
        raise NotPluggableError(f"it has layers of the type {sorted(kinds)[0]}")
    parameters = getattr(config, "rope_parameters", None) or {}
    settings = [parameters, *(x for x in parameters.values() if isinstance(x, dict))]
    kinds = {str(x.get("rope_type")) for x in settings} & {"dynamic", "longrope"}
    if kinds:
        raise NotPluggableError(f"its {kinds.pop()} rope depends on the longest sequence of a batch")


@torch.inference_mode()
def _with_paged_attention(model: PreTrainedModel, hidden: HiddenStates, shape: ModelShape) -> PagedTransformers:
    from transformers import AttentionInterface

    AttentionInterface.register(paged.NAME, paged.attend)
    device = next(model.parameters()).device
    vocab_size = model.config.get_text_config(decoder=True).vocab_size
    tokens = (torch.arange(2 * _LENGTH, device=device) * 7919 + 11) % vocab_size
    ours, other = tokens.view(2, _LENGTH)
    wanted = model(input_ids=ours[None], use_cache=False, return_dict=True).logits[0].float()
    model.set_attn_implementation(paged.NAME)
    with paged.recording() as calls:
        hidden.base(input_ids=ours[None, :1], position_ids=torch.zeros_like(ours[None, :1]), use_cache=False)
    _check_windows(model, calls)
    result = PagedTransformers(model, hidden, shape, calls)
    found = _run_in_parts(result, ours, other)
    error = float((found - wanted).norm() / wanted.norm())
    if not error <= _TOLERANCE[model.dtype]:
        raise NotPluggableError(f"with paged attention its logits are off by {error:.0%}")
    return result


def _check_windows(model: PreTrainedModel, calls: dict[nn.Module, AttentionCall]) -> None:
    """Raise `NotPluggableError` where the config speaks of sliding windows and attention is told of none."""
    config = model.config.get_text_config(decoder=True)
    if not calls:
        raise NotPluggableError("its attention is not called")
    windows = [call.window for call in calls.values() if call.window is not None]
    kinds = getattr(config, "layer_types", None)
    if kinds:
        expected = kinds.count("sliding_attention")
    else:
        slides = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
        expected = max(1, len(windows)) if slides else 0
    if expected != len(windows):
        raise NotPluggableError(f"{len(windows)} layers have a sliding window and config.json asks for {expected}")


def _run_in_parts(model: PagedTransformers, ours: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Logits of `ours` [length], computed in two chunks and a decode, each beside a part of another sequence."""
    device = ours.device
    for layer in model.attention_layers():
        size = (2, _NUM_BLOCKS, _BLOCK_SIZE, layer.num_kv_heads, layer.head_dim)
        cache = torch.zeros(size, dtype=next(model.parameters()).dtype, device=device)
        layer.bind(cache[0], cache[1], _NUM_BLOCKS * _BLOCK_SIZE)
    blocks = torch.arange(_NUM_BLOCKS, device=device).view(2, -1)
    logits = []
    # The chunks of each sequence, from where to where. Those of one token decode, and come first.
    for a, b in (((0, 9), (0, 5)), ((9, 15), (5, 6)), ((15, 16), (6, 7))):
        parts = sorted([(b, 1), (a, 0)], key=lambda part: part[0][1] - part[0][0] > 1)
        decodes = [(span, row) for span, row in parts if span[1] - span[0] == 1]
        ids, positions, slots, spans, first, place = [], [], [], [], 0, slice(0)
        for (start, end), row in parts:
            where = torch.arange(start, end, device=device)
            ids.append((ours, other)[row][start:end])
            positions.append(where)
            slots.append(blocks[row][where // _BLOCK_SIZE] * _BLOCK_SIZE + where % _BLOCK_SIZE)
            if row == 0:
                place = slice(first, first + end - start)
            if end - start > 1:
                spans.append(PrefillSpan(first, end - start, start, blocks[row][: -(-end // _BLOCK_SIZE)]))
            first += end - start
        context = AttentionContext(
            torch.cat(slots),
            len(decodes),
            [end for (_, end), _ in decodes],
            blocks[[row for _, row in decodes]],
            spans,
        )
        with attention_context(context):
            hidden = model(torch.cat(ids), torch.cat(positions))
        logits.append(model.logits(hidden[place]))
    return torch.cat(logits)
