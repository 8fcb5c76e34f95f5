"""GLM-4.5 and later, and dots.llm1: usual attention with DeepSeek-V3's experts."""

from __future__ import annotations

from dataclasses import replace

from quire_engine.layers.norm import HeadNormSpec
from quire_engine.models.decoder import DecoderSpec
from quire_engine.models.deepseek import corrected_router, dense_then_sparse
from quire_engine.models.llama import llama_attention, rms_norm
from quire_engine.models.qwen2 import qwen_windows
from quire_engine.models.settings import Config, flag


def glm4_moe(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    attention = replace(llama_attention(config), output_bias=False)
    if flag(config, "use_qk_norm", False):
        attention = replace(attention, qk_norm=HeadNormSpec("head", rms_norm(config)))
    return dense_then_sparse(config, [attention], corrected_router(config), num_shared=1, num_dense=1)


def dots1(config: Config) -> DecoderSpec:
    """Raises `ValueError` that names what is not supported."""
    attention = replace(llama_attention(config), qk_norm=HeadNormSpec("head", rms_norm(config)))
    windows = qwen_windows({**config, "use_sliding_window": True})
    attentions = [replace(attention, window=window) for window in windows]
    return dense_then_sparse(config, attentions, corrected_router(config), num_shared=0, num_dense=0)
