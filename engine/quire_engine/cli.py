"""The `quire-engine` command. Each subcommand imports what it needs when it runs."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from quire_engine import __version__
from quire_engine.config import EngineConfig
from quire_engine.flags import FlagParser, from_namespace
from quire_engine.large_heap import lay_arenas_together
from quire_engine.server.api_keys import keys_of_environment
from quire_engine.server.settings import ServerSettings


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand. Returns the exit status: 0, 1 for a failure, 2 for a wrong command line."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    if arguments[:1] and arguments[0] in COMMANDS:
        command = COMMANDS[arguments[0]]
        return command(arguments[1:])
    parser.parse_args(arguments)
    parser.print_help()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("quire-engine", description="Quire's inference engine.")
    parser.add_argument("--version", action="version", version=f"quire-engine {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=(command.__doc__ or "").split("\n")[0], add_help=False)
    return parser


def serve(argv: Sequence[str]) -> int:
    """Serve a model behind OpenAI's API."""
    # A container's first process never gets a SIGTERM that it has no handler for: this one holds until the server's.
    # It raises nothing: modules are being imported, and compiled ones crash when an exception reaches them half made.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    lay_arenas_together()
    parser = FlagParser("quire-engine serve", usage="quire-engine serve MODEL [flags]", description=serve.__doc__)
    parser.add_argument("positional_model", nargs="?", metavar="MODEL", help="the model, as with --model")
    parser.add_settings(EngineConfig)
    parser.add_settings(ServerSettings)
    found = parser.parse_args(argv)
    if found.positional_model and found.model and found.positional_model != found.model:
        parser.error(f"the model is given twice: {found.positional_model} and --model {found.model}")
    found.model = found.model or found.positional_model
    if not found.model:
        parser.error("no model: name a directory or a hub model, as in `quire-engine serve org/model`")
    keys = (*(found.api_key or ()), *keys_of_environment(os.environ))
    try:
        config = from_namespace(EngineConfig, found)
        settings = from_namespace(ServerSettings, found, api_key=keys)
    except ValueError as error:
        parser.error(str(error))
    from quire_engine.server.serve import serve as run_server

    return run_server(config, settings)


def drain(argv: Sequence[str]) -> int:
    """Take the server in this container out of service without cutting a request (for preStop)."""
    parser = FlagParser("quire-engine drain", description=drain.__doc__)
    parser.add_argument("--port", type=int, default=8000, help="the server's port (default: 8000)")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds to wait at most (default: 30)")
    found = parser.parse_args(argv)
    from quire_engine.drain import request_drain

    problem = request_drain(found.port, found.timeout)
    if problem is not None:
        sys.stderr.write(f"quire-engine drain: {problem}\n")
    return 0 if problem is None else 1


def tiny(argv: Sequence[str]) -> int:
    """Make a small model that speaks English-like text, trained here in up to 3 minutes and kept."""
    parser = FlagParser("quire-engine tiny", description=tiny.__doc__)
    parser.add_argument("directory", type=Path, metavar="DIR", help="where to put the model")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same file on the same machine")
    found = parser.parse_args(argv)
    from quire_engine.logs import configure_logging
    from quire_engine.tiny.training import Recipe, tiny_model

    configure_logging()
    try:
        tiny_model(found.directory, Recipe(seed=found.seed))
    except OSError as error:
        sys.stderr.write(f"quire-engine tiny: {error}\n")
        return 1
    sys.stdout.write(f"the tiny model is in {found.directory}\n")
    return 0


def chat(argv: Sequence[str]) -> int:
    """Chat with a server in the terminal."""
    parser = FlagParser("quire-engine chat", description=chat.__doc__)
    parser.add_argument("url", metavar="URL", help="the server, as in http://127.0.0.1:8000")
    parser.add_argument("--model", help="the model to ask (default: the first that is served)")
    parser.add_argument("--api-key", default=os.environ.get("QUIRE_API_KEY"), help="default: QUIRE_API_KEY")
    parser.add_argument("--message", help="ask this one thing and end")
    found = parser.parse_args(argv)
    from quire_engine.chat_client import run_chat

    return run_chat(found.url, found.model, found.api_key, found.message)


def prefetch(argv: Sequence[str]) -> int:
    """Download what serving needs of a hub model into a cache, going on where an earlier attempt was cut off."""
    parser = FlagParser("quire-engine prefetch", description=prefetch.__doc__)
    parser.add_argument("repository", metavar="REPO", help="the model's name on the hub, such as org/model")
    parser.add_argument("--revision", default="main", help="branch, tag or commit (default: main)")
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        default=Path(os.environ.get("HF_HOME") or "~/.cache/huggingface"),
        help="a HF_HOME: the model ends up in DIR/hub (default: HF_HOME)",
    )
    parser.add_argument(
        "--keep-revisions",
        type=int,
        metavar="N",
        help="afterwards remove revisions of this model that were fetched here, but for this one and N older ones",
    )
    parser.add_argument("--keep", action="append", default=[], metavar="COMMIT", help="a revision that stays besides")
    parser.add_argument(
        "--from", dest="origin", type=Path, metavar="DIR", help="copy it from this HF_HOME, not the hub"
    )
    parser.add_argument(
        "--any-format",
        action="store_true",
        help="for another engine: take the weights in whatever format they are, .bin for one (default: safetensors)",
    )
    parser.add_argument(
        "--adapter",
        action="store_true",
        help="REPO is a LoRA adapter: take adapter_config.json and adapter_model.safetensors alone",
    )
    parser.add_argument("--progress-port", type=int, help="tell at GET /progress on this port how far it is")
    found = parser.parse_args(argv)
    # A container's first process never gets a SIGTERM that it has no handler for, and what is there is on disk.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    from quire_engine.loading.prefetch import Wish, run_prefetch
    from quire_engine.logs import configure_logging

    configure_logging()
    wish = Wish(
        found.repository,
        found.revision,
        keep=found.keep,
        keep_revisions=found.keep_revisions,
        origin=found.origin,
        any_format=found.any_format,
        is_adapter=found.adapter,
    )
    return run_prefetch(found.cache.expanduser(), wish, found.progress_port)


def inspect(argv: Sequence[str]) -> int:
    """Print in one line of JSON how large a checkpoint is, from its config.json and the headers of its weights."""
    parser = FlagParser("quire-engine inspect", description=inspect.__doc__)
    parser.add_argument("directory", type=Path, metavar="DIR", help="the checkpoint; its weights are not read")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write there (default: standard output)")
    found = parser.parse_args(argv)
    from quire_engine.memory_plan.model_facts import ModelFacts

    try:
        text = ModelFacts.of_directory(found.directory).to_json()
        sys.stdout.write(f"{text}\n") if found.output is None else found.output.write_text(text)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def bench(argv: Sequence[str]) -> int:
    """Measure a server under load, or the engine alone."""
    from quire_engine.bench.command import run

    return run(argv)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "serve": serve,
    "prefetch": prefetch,
    "drain": drain,
    "tiny": tiny,
    "chat": chat,
    "inspect": inspect,
    "bench": bench,
}

if __name__ == "__main__":
    sys.exit(main())
