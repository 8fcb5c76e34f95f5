"""The engine on one device with random weights: start, one stream, and many."""

from __future__ import annotations

import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu_kernels import Roofline
from quire_engine.config import EngineConfig
from quire_engine.core.loop import EngineCore
from quire_engine.core.messages import EngineRequest
from quire_engine.engine import build_engine
from quire_engine.sampling_params import SamplingParams

LLAMA_8B: dict[str, int] = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "max_position_embeddings": 8192,
    "rope_theta": 500000,
}
TINY: dict[str, int] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
}


def engine_figures(device: str, roofline: Roofline, *, tiny: bool) -> dict[str, Any]:
    """Seconds of the start by phase, and output tokens a second of each case."""
    shape = TINY if tiny else LLAMA_8B
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rms_norm_eps": 1e-5, "hidden_act": "silu"}
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "config.json").write_text(json.dumps(config | shape))
        settings: dict[str, Any] = {"num_gpu_blocks_override": 32, "max_num_batched_tokens": 16} if tiny else {}
        started = time.monotonic()
        core, info = build_engine(
            EngineConfig(
                model=directory,
                device=device,
                dtype="float32" if tiny else "bfloat16",
                load_format="dummy",
                max_model_len=64 if tiny else 4096,
                enable_prefix_caching=False,
                max_num_seqs=4 if tiny else 256,
                **settings,
            )
        )
        phases = {name: round(seconds, 2) for name, seconds in info.startup_seconds.items()}
        figures: dict[str, Any] = {"start": {"seconds": round(time.monotonic() - started, 2), "phases": phases}}
        rng = random.Random(0)
        one, many = ([(4, 2)], [(5, 2), (3, 2)]) if tiny else ([(128, 512)], [(1000, 1000)] * 512)
        mixed = many if tiny else [(_length(rng, 220), _length(rng, 200)) for _ in range(1000)]
        for name, lengths in (("one stream", one), ("many, 1000 in 1000 out", many), ("lengths as ShareGPT's", mixed)):
            figures[name] = _run(core, lengths, shape["vocab_size"], rng)
        if not tiny:
            limit = roofline.bandwidth / _bytes_of_weights(shape)
            figures["one stream"]["share_of_roofline"] = round(figures["one stream"]["decode_tokens_per_s"] / limit, 3)
    return figures


def _run(core: EngineCore, lengths: list[tuple[int, int]], vocab_size: int, rng: random.Random) -> dict[str, Any]:
    """Requests of (tokens of the prompt, tokens of the answer), all there from the start."""
    for i, (prompt, answer) in enumerate(lengths):
        params = SamplingParams(temperature=0.0, max_tokens=answer, ignore_eos=True)
        core.add_request(EngineRequest(str(i), [rng.randrange(vocab_size) for _ in range(prompt)], params))
    started, first, tokens = time.monotonic(), None, 0
    while core.has_work():
        for output in core.step():
            if output.error is not None:
                raise RuntimeError(f"request {output.request_id} failed: {output.error}")
            tokens += len(output.new_token_ids)
        if first is None and tokens:
            first, at_first = time.monotonic(), tokens
    ended = time.monotonic()
    assert first is not None
    return {
        "tokens": tokens,
        "first_token_s": round(first - started, 4),
        "tokens_per_s": round(tokens / (ended - started), 1),
        "decode_tokens_per_s": round((tokens - at_first) / (ended - first), 1),
    }


def _length(rng: random.Random, mean: int) -> int:
    """Log-normal, as lengths of conversations are, from 4 to 1500."""
    return max(4, min(1500, round(mean * rng.lognormvariate(-0.5, 1.0))))


def _bytes_of_weights(shape: dict[str, int]) -> float:
    """Of what a decode reads in bfloat16: all but the embedding."""
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    kv = hidden * shape["num_key_value_heads"] // shape["num_attention_heads"]
    layer = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * inner
    return 2.0 * (shape["num_hidden_layers"] * layer + shape["vocab_size"] * hidden)
