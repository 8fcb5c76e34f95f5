"""Write the table of fields and engines of llmservice.md: `python docs/write_engines.py` (`make crds`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quire_operator.api import LLMService, parse_llmservice
from quire_operator.builders.circumstances import Circumstances
from quire_operator.builders.engine_env import engine_env
from quire_operator.builders.engines import engine_of
from quire_operator.builders.pod import build_pod_template
from quire_operator.builders.strategic_merge import merge
from quire_operator.plan.acceptance import refusal_of
from quire_operator.settings import Settings

PAGE = Path(__file__).parent / "llmservice.md"
CIRCUMSTANCES = Circumstances(Settings())
ENGINES = ("quire", "vllm", "tgi", "trtllm", "custom")
HUB = {"source": "hf://org/model"}

FIELDS: dict[str, dict[str, Any]] = {
    "model.source": {"model": {"source": "hf://org/other"}},
    "model.revision": {"model": {"revision": "v1"}},
    "model.name": {"model": {"name": "llama"}},
    "model.aliases": {"model": {"aliases": ["other"]}},
    "model.tokenSecretRef": {"model": {"tokenSecretRef": {"name": "hf", "key": "token"}}},
    "model.dtype": {"model": {"dtype": "bfloat16"}},
    "model.quantization": {"model": {"quantization": "fp8"}},
    "model.quantization: int8": {"model": {"quantization": "int8"}},
    "model.kvCacheDtype": {"model": {"kvCacheDtype": "fp8"}},
    "model.maxModelLen": {"model": {"maxModelLen": 4096}},
    "model.trustRemoteCode": {"model": {"trustRemoteCode": True}},
    "model.adapters": {"model": {"adapters": [{"name": "sql", "source": "image:///sql"}]}},
    "engine.gpuMemoryUtilization": {"engine": {"gpuMemoryUtilization": 0.8}},
    "engine.maxNumSeqs": {"engine": {"maxNumSeqs": 8}},
    "engine.maxNumBatchedTokens": {"engine": {"maxNumBatchedTokens": 1024}},
    "engine.blockSize": {"engine": {"blockSize": 32}},
    "engine.swapSpaceGiB": {"engine": {"swapSpaceGiB": 8}},
    "engine.prefixCaching": {"engine": {"prefixCaching": False}},
    "engine.chunkedPrefill": {"engine": {"chunkedPrefill": False}},
    "engine.enforceEager": {"engine": {"enforceEager": True}},
    "engine.speculative: ngram": {"engine": {"speculative": {"method": "ngram"}}},
    "engine.speculative: draft": {"engine": {"speculative": {"method": "draft", "model": "hf://org/draft"}}},
    "parallelism.tensor": {"parallelism": {"tensor": 2}},
    "parallelism.pipeline": {"parallelism": {"pipeline": 2}},
    "resources.gpu.count: 0": {"resources": {"gpu": {"count": 0}}},
    "cache": {"cache": {"claimName": "models"}},
    "rollout.drainSeconds": {"rollout": {"drainSeconds": 60}},
    "security.apiKeySecretRef": {"security": {"apiKeySecretRef": {"name": "keys", "key": "key"}}},
}
"""Each field that an engine has to do something for, with a value that is not its default."""


def service(engine: str, /, **spec: Any) -> LLMService:
    """A service with this engine, on a GPU and with a model from the hub unless `spec` says otherwise."""
    own: dict[str, Any] = {"type": engine}
    if engine != "quire":
        own["image"] = "engine:1"
    if engine == "custom":
        own["command"] = ["serve"]
    body = {
        "apiVersion": "serving.quire.dev/v1alpha1",
        "kind": "LLMService",
        "metadata": {"name": "name"},
        "spec": merge({"model": HUB, "engine": own}, spec),
    }
    return parse_llmservice(body, strict=True)


def outcome(engine: str, change: dict[str, Any]) -> str:
    """What an engine makes of a field: its flags and variables, a change of the pod, or why there is none."""
    before, after = service(engine), service(engine, **change)
    refusal = refusal_of(after.spec)
    if refusal is not None:
        return "not yet" if refusal.reason == "NotSupportedYet" else "refused"
    flags, variables = dict.fromkeys(_flags(before, after)), dict.fromkeys(_variables(before, after))
    if flags or variables:
        return " ".join(name if " " in name else f"`{name}`" for name in (*flags, *variables))
    same = build_pod_template(before, CIRCUMSTANCES) == build_pod_template(after, CIRCUMSTANCES)
    return "" if same else "the pod"


def _flags(before: LLMService, after: LLMService) -> Iterator[str]:
    """Flags that came, went or changed. What follows a flag belongs to it."""
    old, new = _by_flag(before), _by_flag(after)
    for flag in (*new, *(flag for flag in old if flag not in new)):
        if old.get(flag) != new.get(flag):
            yield flag


def _by_flag(service: LLMService) -> dict[str, list[str]]:
    flag, found = "first argument", dict[str, list[str]]()
    for argument in engine_of(service).args:
        if argument.startswith("-"):
            flag, _, value = argument.partition("=")
            found[flag] = [value]
        else:
            found.setdefault(flag, []).append(argument)
    return found


def _variables(before: LLMService, after: LLMService) -> Iterator[str]:
    old, new = ({v["name"]: v for v in engine_env(each, CIRCUMSTANCES)} for each in (before, after))
    for name in new:
        if old.get(name) != new[name]:
            yield name


def table() -> str:
    """A Markdown table with a row for each field and a column for each engine."""
    rows = [f"| `spec.` | {' | '.join(ENGINES)} |", "|---" * (len(ENGINES) + 1) + "|"]
    for field, change in FIELDS.items():
        cells = [outcome(engine, change) for engine in ENGINES]
        rows.append(f"| `{field}` | {' | '.join(cells)} |")
    return "\n".join(rows)


def with_table(page: str) -> str:
    """The page with the table between `<!-- engines -->` and `<!-- end -->` written anew."""
    pattern = re.compile(r"(<!-- engines -->\n).*?(\n<!-- end -->)", re.DOTALL)
    return pattern.sub(lambda found: found[1] + table() + found[2], page)


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
