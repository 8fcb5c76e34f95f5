"""The formats by the names that vLLM gives them."""

from __future__ import annotations

from quire_engine.tools.calls import CallFormat
from quire_engine.tools.deepseek import DEEPSEEK_V3, DEEPSEEK_V31
from quire_engine.tools.glm import GLM45
from quire_engine.tools.hermes import HERMES, json_calls
from quire_engine.tools.kimi import KIMI_K2
from quire_engine.tools.llama import LLAMA3_JSON
from quire_engine.tools.mistral import MISTRAL
from quire_engine.tools.pythonic import PYTHONIC
from quire_engine.tools.qwen3_coder import QWEN3_CODER

FORMATS = {
    "deepseek_v3": DEEPSEEK_V3,
    "deepseek_v31": DEEPSEEK_V31,
    "glm45": GLM45,
    "glm47": GLM45,
    "granite": CallFormat(json_calls, opening=("<|tool_call|>", "<tool_call>"), closing=("</tool_call>",)),
    "hermes": HERMES,
    "internlm": CallFormat(
        json_calls, opening=("<|action_start|><|plugin|>", "<|action_start|> <|plugin|>"), closing=("<|action_end|>",)
    ),
    "jamba": CallFormat(json_calls, opening=("<tool_calls>",), closing=("</tool_calls>",)),
    "kimi_k2": KIMI_K2,
    "llama3_json": LLAMA3_JSON,
    "llama4_json": LLAMA3_JSON,
    "llama4_pythonic": PYTHONIC,
    "mistral": MISTRAL,
    "olmo3": PYTHONIC,
    "phi4_mini_json": CallFormat(json_calls, opening=("functools",)),
    "pythonic": PYTHONIC,
    "qwen3_coder": QWEN3_CODER,
    "qwen3_xml": QWEN3_CODER,
}
