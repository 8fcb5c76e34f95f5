"""Which family a checkpoint's `architectures` means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from quire_engine.memory_plan.architectures import normalised, usual_spelling, with_head, without_head
from quire_engine.models.bert import bert, distilbert, roberta
from quire_engine.models.bloom import bloom
from quire_engine.models.cohere import cohere, cohere2
from quire_engine.models.decoder import DecoderSpec
from quire_engine.models.deepseek import deepseek_v2, deepseek_v3
from quire_engine.models.exaone4 import exaone4
from quire_engine.models.falcon import falcon
from quire_engine.models.gemma import gemma, gemma2, gemma3
from quire_engine.models.glm import glm, glm4
from quire_engine.models.glm_moe import dots1, glm4_moe
from quire_engine.models.gpt2 import gpt2
from quire_engine.models.gpt_bigcode import gpt_bigcode
from quire_engine.models.gpt_neox import gpt_neox
from quire_engine.models.gptj import gptj
from quire_engine.models.granite import granite, granite_moe
from quire_engine.models.llama import llama
from quire_engine.models.llava import llava
from quire_engine.models.llava_next import llava_next
from quire_engine.models.mistral import ministral, mistral
from quire_engine.models.mixtral import mixtral
from quire_engine.models.mpt import mpt
from quire_engine.models.nemotron import nemotron
from quire_engine.models.newer_llamas import arcee, ernie, seed_oss
from quire_engine.models.olmo import olmo, olmo2, olmo3
from quire_engine.models.opt import opt
from quire_engine.models.phi import phi
from quire_engine.models.phi3 import phi3
from quire_engine.models.phi4_multimodal import phi4_multimodal
from quire_engine.models.qwen2 import qwen2
from quire_engine.models.qwen2_vl import qwen2_vl
from quire_engine.models.qwen3 import qwen3
from quire_engine.models.qwen_moe import olmoe, qwen2_moe, qwen3_moe
from quire_engine.models.settings import Config
from quire_engine.models.smollm3 import smollm3
from quire_engine.models.stablelm import stablelm
from quire_engine.models.starcoder2 import starcoder2

FAMILIES: dict[str, Callable[[Config], DecoderSpec]] = {
    "LlamaForCausalLM": llama,
    "MistralForCausalLM": mistral,
    "Qwen2ForCausalLM": qwen2,
    "Qwen3ForCausalLM": qwen3,
    "GemmaForCausalLM": gemma,
    "Gemma2ForCausalLM": gemma2,
    "Gemma3ForCausalLM": gemma3,
    "Phi3ForCausalLM": phi3,
    "GPTNeoXForCausalLM": gpt_neox,
    "GPT2LMHeadModel": gpt2,
    "PhiForCausalLM": phi,
    "OPTForCausalLM": opt,
    "FalconForCausalLM": falcon,
    "StableLmForCausalLM": stablelm,
    "CohereForCausalLM": cohere,
    "Cohere2ForCausalLM": cohere2,
    "OlmoForCausalLM": olmo,
    "Olmo2ForCausalLM": olmo2,
    "GraniteForCausalLM": granite,
    "MinistralForCausalLM": ministral,
    "Olmo3ForCausalLM": olmo3,
    "Starcoder2ForCausalLM": starcoder2,
    "GPTBigCodeForCausalLM": gpt_bigcode,
    "GPTJForCausalLM": gptj,
    "BloomForCausalLM": bloom,
    "MptForCausalLM": mpt,
    "NemotronForCausalLM": nemotron,
    "GlmForCausalLM": glm,
    "Glm4ForCausalLM": glm4,
    "SmolLM3ForCausalLM": smollm3,
    "Exaone4ForCausalLM": exaone4,
    "Ernie4_5ForCausalLM": ernie,
    "ArceeForCausalLM": arcee,
    "SeedOssForCausalLM": seed_oss,
    "MixtralForCausalLM": mixtral,
    "Qwen2MoeForCausalLM": qwen2_moe,
    "Qwen3MoeForCausalLM": qwen3_moe,
    "OlmoeForCausalLM": olmoe,
    "DeepseekV2ForCausalLM": deepseek_v2,
    "DeepseekV3ForCausalLM": deepseek_v3,
    "Glm4MoeForCausalLM": glm4_moe,
    "Dots1ForCausalLM": dots1,
    "GraniteMoeForCausalLM": granite_moe,
    "LlavaForConditionalGeneration": llava,
    "LlavaNextForConditionalGeneration": llava_next,
    "Phi4MultimodalForCausalLM": phi4_multimodal,
    "Qwen2VLForConditionalGeneration": qwen2_vl,
}

ENCODERS: dict[str, Callable[[Config], DecoderSpec]] = {
    "BertModel": bert,
    "BertForMaskedLM": bert,
    "RobertaModel": roberta,
    "RobertaForMaskedLM": roberta,
    "XLMRobertaModel": roberta,
    "XLMRobertaForMaskedLM": roberta,
    "DistilBertModel": distilbert,
    "DistilBertForMaskedLM": distilbert,
}
"""They make embeddings alone."""


def has_family(config: Config) -> bool:
    """Whether one of a config.json's architectures is a family of ours."""
    architectures = config.get("architectures")
    written = architectures if isinstance(architectures, list) else []
    names = [usual_spelling(name) for name in written if isinstance(name, str)]
    return any(name in ENCODERS or (with_head(name) or name) in FAMILIES for name in names)


def decoder_spec(config: Config) -> DecoderSpec:
    """The spec of a config.json. Raises `ValueError` for an unknown architecture or an unsupported setting."""
    common = normalised(config)
    architectures = common["architectures"]
    assert isinstance(architectures, list)
    name = architectures[0]
    if name in ENCODERS:
        return ENCODERS[name](common)
    if common.get("is_causal") is False or common.get("use_bidirectional_attention"):
        raise ValueError(f"config.json: tokens of this {name} see those behind them: only encoders may, as BertModel")
    whole = with_head(name)
    return FAMILIES[name](common) if whole is None else embedding_spec(FAMILIES[whole](common))


def embedding_spec(spec: DecoderSpec) -> DecoderSpec:
    """The model without its output head, which its checkpoint may lack. Raises `ValueError` where that is no vector."""
    if spec.vision is not None:
        raise ValueError(f"{spec.shape.architecture} makes no embeddings here: it generates text")
    if spec.embedding.size is not None:
        raise ValueError(f"{spec.shape.architecture} projects its hidden states: it makes no embeddings here")
    shape = replace(spec.shape, architecture=without_head(spec.shape.architecture), tied_embeddings=True)
    naming = spec.naming
    head, first = naming.source("lm_head.weight").name, naming.source("model.embed_tokens.weight").name
    otherwise = naming.otherwise or {first.partition(".")[0] + ".": ""}
    unused = (*naming.unused, head, head.removesuffix("weight") + "bias")
    return replace(spec, shape=shape, head_bias=False, naming=replace(naming, otherwise=otherwise, unused=unused))
