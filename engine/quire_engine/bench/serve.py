"""`quire-engine bench serve`: load on any server of OpenAI's API."""

from __future__ import annotations

import asyncio
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped]  # it ships no types

from quire_engine.bench.arrivals import arrivals
from quire_engine.bench.client import Target, send, served_models, session
from quire_engine.bench.figures import TITLES, figures, milliseconds
from quire_engine.bench.load import run_load
from quire_engine.bench.outcome import Outcome
from quire_engine.bench.plot import drawing
from quire_engine.bench.report import table
from quire_engine.bench.samples import Sample

Samples = Callable[[Any], list[Sample]]
"""Makes the requests with a tokenizer."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is measured and how. `request_rate` is in requests a second; `goodput` in milliseconds a metric."""

    target: Target
    samples: Samples
    tokenizer: str | None = None
    request_rate: float = math.inf
    burstiness: float = 1.0
    max_concurrency: int | None = None
    seed: int = 0
    metrics: Sequence[str] = ("ttft", "tpot", "itl")
    percentiles: Sequence[float] = (99.0,)
    goodput: dict[str, float] = field(default_factory=dict)
    progress: bool = True

    def __post_init__(self) -> None:
        if not self.request_rate > 0 or not self.burstiness > 0:
            raise ValueError("--request-rate and --burstiness must be above 0")
        if self.max_concurrency is not None and self.max_concurrency < 1:
            raise ValueError("--max-concurrency must be at least 1")
        if not all(0 <= p <= 100 for p in self.percentiles):
            raise ValueError("--metric-percentiles must be between 0 and 100")
        for name in self.metrics:
            if name not in TITLES:
                raise ValueError(f"--percentile-metrics: {name} is not measured: choose of {', '.join(TITLES)}")
        for name in self.goodput:
            if name not in ("ttft", "tpot", "e2el"):
                raise ValueError(f"--goodput: {name} is not of an answer: choose of ttft, tpot, e2el")


def bench_serve(run: Run, result: Path | None, plot: Path | None) -> int:
    """Measure, print the table, write what is asked for. Returns the exit status: 1 where any request failed.

    Raises `ValueError` for what is wrong before the load begins.
    """
    found, outcomes = asyncio.run(_measured(run))
    title = f" {run.target.base_url}{run.target.endpoint} "
    sys.stdout.write(f"{title:=^64}\n{table(found, run.metrics)}\n{'=' * 64}\n")
    failed = [outcome.error for outcome in outcomes if outcome.error]
    if failed:
        sys.stderr.write(f"{len(failed)} of {len(outcomes)} requests failed, the first with: {failed[0]}\n")
    if result is not None:
        result.write_text(json.dumps(found | _details(outcomes), indent=1), encoding="utf-8")
    if plot is not None:
        caption = f"{found['model_id']}: {found['completed']} answers, {found['output_throughput']:.1f} tokens/s"
        plot.write_text(drawing({name: milliseconds(outcomes, name) for name in TITLES}, caption), encoding="utf-8")
    return 1 if failed else 0


async def _measured(run: Run) -> tuple[dict[str, object], list[Outcome]]:
    async with session() as client:
        models = await served_models(client, run.target)
        target, card = _named(run.target, models)
        path = run.tokenizer or str(card.get("root") or target.model)
        samples = await asyncio.to_thread(_samples, run, path)
        await _try(send(client, target, replace(samples[0], output_len=1)))
        times = arrivals(len(samples), run.request_rate, run.burstiness, run.seed)
        with tqdm(total=len(samples), unit="req", disable=not run.progress) as bar:
            outcomes, duration = await run_load(
                client, target, samples, times, run.max_concurrency, lambda _: bar.update()
            )
    about = {
        "date": time.strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": "openai-chat" if target.is_chat else "openai",
        "model_id": target.model,
        "tokenizer_id": path,
        "num_prompts": len(samples),
        "request_rate": run.request_rate if math.isfinite(run.request_rate) else "inf",
        "burstiness": run.burstiness,
        "max_concurrency": run.max_concurrency,
    }
    return about | figures(outcomes, duration, run.percentiles, run.metrics, run.goodput or None), outcomes


def _named(target: Target, models: Sequence[dict[str, Any]]) -> tuple[Target, dict[str, Any]]:
    """The target with a model's name, and what the server says of that model."""
    if not target.model:
        return replace(target, model=str(models[0]["id"])), models[0]
    names = [str(model["id"]) for model in models]
    if target.model not in names:
        raise ValueError(f"--model {target.model} is not served there: {', '.join(names)} is")
    return target, models[names.index(target.model)]


def _samples(run: Run, path: str) -> list[Sample]:
    from quire_engine.text.tokenizer import load_tokenizer

    return run.samples(load_tokenizer(path))


async def _try(first: Any) -> None:
    """One request before the load, so that what is wrong with all of them is said at once."""
    outcome: Outcome = await first
    if outcome.error:
        raise ValueError(f"the server does not answer a first request: {outcome.error}")


def _details(outcomes: Sequence[Outcome]) -> dict[str, object]:
    every = [asdict(outcome) for outcome in outcomes]
    names = {"input_lens": "prompt_len", "output_lens": "output_len", "ttfts": "ttft", "itls": "itls"}
    names |= {"generated_texts": "text", "errors": "error"}
    return {name: [one[key] for one in every] for name, key in names.items()}
