"""The command line of `quire-engine bench`."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from quire_engine.bench.client import CHAT, COMPLETIONS, Target
from quire_engine.bench.samples import RandomLengths, Sample, custom_samples, random_samples, sharegpt_samples
from quire_engine.config import EngineConfig
from quire_engine.flags import FlagParser, from_namespace
from quire_engine.logs import configure_logging
from quire_engine.startup_error import StartupError

BACKENDS = {"openai": COMPLETIONS, "vllm": COMPLETIONS, "openai-chat": CHAT}


def run(argv: Sequence[str]) -> int:
    """Run one of the benchmarks. Returns the exit status: 0, 1 for a failure, 2 for a wrong command line."""
    arguments = list(argv)
    if arguments[:1] and arguments[0] in COMMANDS:
        return COMMANDS[arguments[0]](arguments[1:])
    parser = argparse.ArgumentParser("quire-engine bench", description="Load and figures.")
    commands = parser.add_subparsers(title="benchmarks", metavar="BENCHMARK", required=True)
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=(command.__doc__ or "").split("\n")[0], add_help=False)
    parser.parse_args(arguments)
    return 2


def serve(argv: Sequence[str]) -> int:
    """Put load on a server of OpenAI's API, ours or another, and tell latencies and rates."""
    parser = FlagParser("quire-engine bench serve", description=serve.__doc__)
    server = parser.add_argument_group("server")
    server.add_argument("--base-url", help="where the server is (default: http://HOST:PORT)")
    server.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1")
    server.add_argument("--port", type=int, default=8000, help="default: 8000")
    server.add_argument("--backend", choices=BACKENDS, default="openai", help="completions, or openai-chat for chats")
    server.add_argument("--endpoint", help="path of the API (default: by the backend)")
    server.add_argument("--model", default="", help="name of the model there (default: the first that is served)")
    server.add_argument("--tokenizer", help="directory or hub name (default: what the server says the model is)")
    server.add_argument("--api-key", default=os.environ.get("OPENAI_API_KEY"), help="default: OPENAI_API_KEY")
    server.add_argument("--ignore-eos", action="store_true", help="answers as long as asked; always so with random")
    server.add_argument("--extra-body", type=_json, default={}, metavar="JSON", help="further fields of each request")
    _add_samples(parser, has_own_seed=True)
    load = parser.add_argument_group("load")
    load.add_argument("--request-rate", type=float, default=math.inf, help="requests a second (default: all at once)")
    load.add_argument("--burstiness", type=float, default=1.0, help="1 is Poisson, less comes in bursts (default: 1)")
    load.add_argument("--max-concurrency", type=int, help="requests under way at most (default: no bound)")
    shown = parser.add_argument_group("figures")
    shown.add_argument("--percentile-metrics", default="ttft,tpot,itl", help="of ttft, tpot, itl, e2el")
    shown.add_argument("--metric-percentiles", default="99", help="such as 50,90,99 (default: 99)")
    shown.add_argument(
        "--goodput", nargs="+", default=[], metavar="METRIC:MS", help="what counts as good: ttft:200 ..."
    )
    shown.add_argument(
        "--result", "--result-filename", type=Path, metavar="FILE", help="write JSON there, with vLLM's names"
    )
    shown.add_argument("--plot", type=Path, metavar="FILE", help="draw the distributions there, as SVG")
    shown.add_argument("--disable-tqdm", action="store_true", help="no progress bar")
    found = parser.parse_args(argv)
    from quire_engine.bench.serve import Run, bench_serve

    try:
        samples = _samples(found)
        always = {"ignore_eos": True} if found.ignore_eos or found.dataset_name == "random" else {}
        target = Target(
            (found.base_url or f"http://{found.host}:{found.port}").rstrip("/").removesuffix("/v1"),
            found.model,
            found.endpoint or BACKENDS[found.backend],
            found.api_key,
            always | found.extra_body,
        )
        asked = Run(
            target=target,
            samples=samples,
            tokenizer=found.tokenizer,
            request_rate=found.request_rate,
            burstiness=found.burstiness,
            max_concurrency=found.max_concurrency,
            seed=found.seed,
            metrics=found.percentile_metrics.split(","),
            percentiles=[float(p) for p in found.metric_percentiles.split(",")],
            goodput=_goodput(found.goodput),
            progress=not found.disable_tqdm,
        )
    except ValueError as error:
        parser.error(str(error))
    return _run("serve", lambda: bench_serve(asked, found.result, found.plot))


def throughput(argv: Sequence[str]) -> int:
    """Answer all requests of a set with the engine alone, and tell requests and tokens per second."""
    parser = FlagParser("quire-engine bench throughput", description=throughput.__doc__)
    parser.add_settings(EngineConfig)
    _add_samples(parser, has_own_seed=False)
    parser.add_argument("--output-json", type=Path, metavar="FILE", help="write the figures there")
    found, config = _engine_flags(parser, argv)
    try:
        samples = _samples(found)
    except ValueError as error:
        parser.error(str(error))
    from quire_engine.bench.offline import bench_throughput

    return _run("throughput", lambda: bench_throughput(config, samples, found.output_json))


def latency(argv: Sequence[str]) -> int:
    """Answer one batch again and again with the engine alone, and tell how long it takes."""
    parser = FlagParser("quire-engine bench latency", description=latency.__doc__)
    parser.add_settings(EngineConfig)
    parser.add_argument("--input-len", type=_positive, default=32, help="tokens of each prompt (default: 32)")
    parser.add_argument("--output-len", type=_positive, default=128, help="tokens of each answer (default: 128)")
    parser.add_argument("--batch-size", type=_positive, default=8, help="prompts at once (default: 8)")
    parser.add_argument("--num-iters-warmup", type=int, default=10, help="runs that do not count (default: 10)")
    parser.add_argument("--num-iters", type=_positive, default=30, help="runs that do (default: 30)")
    parser.add_argument("--output-json", type=Path, metavar="FILE", help="write the figures there")
    found, config = _engine_flags(parser, argv)
    from quire_engine.bench.offline import bench_latency

    return _run(
        "latency",
        lambda: bench_latency(
            config,
            found.input_len,
            found.output_len,
            found.batch_size,
            found.num_iters_warmup,
            found.num_iters,
            found.output_json,
        ),
    )


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {"serve": serve, "throughput": throughput, "latency": latency}


def _add_samples(parser: FlagParser, *, has_own_seed: bool) -> None:
    asked = parser.add_argument_group("requests")
    asked.add_argument(
        "--dataset-name", choices=("random", "sharegpt", "custom"), help="default: sharegpt with a file, else random"
    )
    asked.add_argument(
        "--dataset-path", "--dataset", type=Path, metavar="FILE", help="ShareGPT's JSON, or JSON Lines of prompts"
    )
    asked.add_argument("--num-prompts", type=_positive, default=1000, help="how many requests (default: 1000)")
    if has_own_seed:  # the engine's own flag is the seed of both elsewhere
        asked.add_argument("--seed", type=int, default=0, help="of requests and of when they come (default: 0)")
    lengths = RandomLengths()
    asked.add_argument("--random-input-len", type=int, default=lengths.input_len, help="tokens (default: 1024)")
    asked.add_argument("--random-output-len", type=int, default=lengths.output_len, help="tokens (default: 128)")
    asked.add_argument("--random-range-ratio", type=float, default=0.0, help="spread of both, 0 to 1 (default: 0)")
    asked.add_argument("--random-prefix-len", type=int, default=0, help="tokens that all begin with (default: 0)")
    asked.add_argument("--output-len", type=_positive, help="tokens of each answer (default: by the file)")


def _samples(found: argparse.Namespace) -> Callable[[Any], list[Sample]]:
    name = found.dataset_name or ("sharegpt" if found.dataset_path else "random")
    found.dataset_name = name
    if name == "random":
        lengths = RandomLengths(
            input_len=found.random_input_len,
            output_len=found.random_output_len,
            range_ratio=found.random_range_ratio,
            prefix_len=found.random_prefix_len,
        )
        return partial(random_samples, number=found.num_prompts, lengths=lengths, seed=found.seed)
    if found.dataset_path is None or not found.dataset_path.is_file():
        raise ValueError(f"--dataset-path is {found.dataset_path}: name a file for --dataset-name {name}")
    if name == "custom":
        return partial(custom_samples, file=found.dataset_path, number=found.num_prompts, output_len=found.output_len)
    return partial(
        sharegpt_samples,
        file=found.dataset_path,
        number=found.num_prompts,
        seed=found.seed,
        output_len=found.output_len,
    )


def _engine_flags(parser: FlagParser, argv: Sequence[str]) -> tuple[argparse.Namespace, EngineConfig]:
    found = parser.parse_args(argv)
    if not found.model:
        parser.error("no model: name a directory or a hub model with --model")
    try:
        return found, from_namespace(EngineConfig, found)
    except ValueError as error:
        parser.error(str(error))


def _run(name: str, measure: Callable[[], int]) -> int:
    configure_logging()
    try:
        return measure()
    except (ValueError, OSError, StartupError) as error:
        sys.stderr.write(f"quire-engine bench {name}: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130


def _goodput(pairs: Sequence[str]) -> dict[str, float]:
    try:
        return {name: float(most) for name, _, most in (pair.partition(":") for pair in pairs)}
    except ValueError as error:
        raise ValueError(f"--goodput is {' '.join(pairs)}: write METRIC:MILLISECONDS, such as ttft:200") from error


def _json(text: str) -> dict[str, Any]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("not an object")
    return found


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number
