"""`quire-engine bench throughput` and `bench latency`: the engine in this process, without a server."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm  # type: ignore[import-untyped]  # it ships no types

from quire_engine.bench.figures import percentile
from quire_engine.bench.samples import Sample

if TYPE_CHECKING:
    from quire_engine.config import EngineConfig
    from quire_engine.llm import LLM

PERCENTILES = (10, 25, 50, 75, 90, 99)


def bench_throughput(config: EngineConfig, samples: Callable[[Any], list[Sample]], result: Path | None) -> int:
    """All requests at once: how many, and how many tokens, a second. Returns the exit status."""
    from quire_engine.sampling_params import SamplingParams

    llm = _engine(config)
    asked = samples(llm.get_tokenizer())
    params = [SamplingParams(temperature=1.0, ignore_eos=True, max_tokens=s.output_len) for s in asked]
    begun = time.perf_counter()
    answers = llm.generate([s.prompt for s in asked], params)
    elapsed = time.perf_counter() - begun
    prompts = sum(len(a.prompt_token_ids or ()) for a in answers)
    generated = sum(len(output.token_ids) for a in answers for output in a.outputs)
    found = {
        "elapsed_time": elapsed,
        "num_requests": len(asked),
        "total_num_tokens": prompts + generated,
        "total_output_tokens": generated,
        "requests_per_second": len(asked) / elapsed,
        "tokens_per_second": (prompts + generated) / elapsed,
        "output_tokens_per_second": generated / elapsed,
    }
    sys.stdout.write(
        f"Throughput: {found['requests_per_second']:.2f} requests/s, {found['tokens_per_second']:.2f} tokens/s, "
        f"{found['output_tokens_per_second']:.2f} output tokens/s\n"
        f"{len(asked)} requests, {prompts} tokens of prompts and {generated} of answers in {elapsed:.2f} s\n"
    )
    _write(result, found)
    return 0


def bench_latency(
    config: EngineConfig,
    input_len: int,
    output_len: int,
    batch_size: int,
    warmups: int,
    repeats: int,
    result: Path | None,
) -> int:
    """The same batch again and again: how long it takes. Returns the exit status."""
    from quire_engine.sampling_params import SamplingParams

    llm = _engine(config)
    vocabulary = llm.get_tokenizer().vocab_size
    params = SamplingParams(temperature=1.0, ignore_eos=True, max_tokens=output_len)

    def once(number: int) -> float:
        # other tokens each time, so that none of them comes out of the prefix cache
        first = number * batch_size
        prompts = [
            {"prompt_token_ids": [(17 * (first + i) + 31 * j) % vocabulary for j in range(input_len)]}
            for i in range(batch_size)
        ]
        begun = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)  # type: ignore[arg-type]  # a dict is a PromptDict
        return time.perf_counter() - begun

    for number in tqdm(range(warmups), desc="Warm-up"):
        once(number)
    latencies = [once(warmups + number) for number in tqdm(range(repeats), desc="Measured")]
    ordered = sorted(latencies)
    percentiles = {str(p): percentile(ordered, p) for p in PERCENTILES}
    mean = statistics.fmean(latencies)
    sys.stdout.write(f"Mean latency: {mean:.4f} s for {batch_size} x {input_len} tokens in, {output_len} out\n")
    sys.stdout.write("".join(f"P{p}: {value:.4f} s\n" for p, value in percentiles.items()))
    _write(result, {"avg_latency": mean, "latencies": latencies, "percentiles": percentiles})
    return 0


def _engine(config: EngineConfig) -> LLM:
    import dataclasses

    from quire_engine.llm import LLM

    return LLM(**dataclasses.asdict(config))


def _write(result: Path | None, found: dict[str, Any]) -> None:
    if result is not None:
        result.write_text(json.dumps(found, indent=1), encoding="utf-8")
