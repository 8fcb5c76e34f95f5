"""The command line: run, crd, render, plan."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from quire_operator import __version__
from quire_operator.api import KIND, InvalidLLMServiceError, LLMService, crd_manifest, parse_llmservice
from quire_operator.builders.cached_model import downloads_of
from quire_operator.builders.circumstances import EVERYTHING, Circumstances
from quire_operator.builders.claim import claim_facts
from quire_operator.builders.desired import desired_objects
from quire_operator.builders.prefetch_job import build_prefetch_job
from quire_operator.builders.scaling import obstacle, with_first_replicas
from quire_operator.plan.acceptance import objection_of, refusal_of
from quire_operator.plan.advice import advice_of
from quire_operator.plan.table import advice_lines, plan_table
from quire_operator.settings import Settings, SettingsError, settings_from
from quire_operator.sources.offline import InvalidCheckpointError, plan_offline
from quire_operator.yaml_output import yaml_text

_EPILOG = """\
Every flag of `run` and `render` can be set in the environment: --engine-image as QUIRE_OPERATOR_ENGINE_IMAGE.
"""

CRD_FILES = {"crds/llmservices.yaml": False, "charts/quire-operator/templates/crds/llmservices.yaml": True}
"""Where `crd --write` puts the CRD, and whether as a Helm template."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `quire-operator`."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except (SettingsError, InvalidLLMServiceError, InvalidCheckpointError, OSError, yaml.YAMLError) as error:
        sys.exit(f"quire-operator {options.name}: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="quire-operator",
        description="Serves large language models on Kubernetes: turns each LLMService into the pods that serve it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")

    run = _command(commands, "run", _run, "work until stopped, on the cluster of KUBECONFIG or of the pod")
    run.add_argument(
        "--namespace",
        action="append",
        dest="namespaces",
        metavar="NAME",
        help="serve only this namespace; may be repeated (default: all)",
    )
    run.add_argument("--workers", type=int, metavar="N", help="LLMServices reconciled at once (default: 20)")
    run.add_argument(
        "--leader-election",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="take a Lease first, so that several replicas can run (default: on)",
    )
    run.add_argument("--lease-namespace", metavar="NAME", help="namespace of the Lease (default: the operator's own)")
    run.add_argument("--lease-name", metavar="NAME", help="name of the Lease (default: quire-operator)")
    run.add_argument(
        "--lease-seconds", type=int, metavar="S", help="how long a silent leader keeps the Lease (default: 15)"
    )
    run.add_argument(
        "--health-port",
        type=int,
        metavar="PORT",
        help="port of /healthz, /readyz and /metrics; 0 takes a free one (default: 8080)",
    )
    _add_product_flag(run)
    run.add_argument(
        "--plan-reads-tokens",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="read the Secrets of gated models' tokens, to plan them (default: off)",
    )
    run.add_argument(
        "--plan-reads-any-hub",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="plan services that set HF_ENDPOINT too: their authors choose a URL that is asked (default: off)",
    )
    run.add_argument(
        "--gpu-hourly-price",
        action="append",
        dest="gpu_hourly_prices",
        metavar="PRODUCT=PRICE",
        help="what an hour of a GPU costs, for dashboards; PRODUCT default is the rest; may be repeated",
    )
    run.add_argument("--log-level", choices=("debug", "info", "warning", "error"), help="default: info")
    _add_building_flags(run)

    crd = _command(commands, "crd", _crd, "print the CustomResourceDefinition of LLMService")
    crd.add_argument(
        "--write", type=Path, metavar="DIR", help=f"write {' and '.join(CRD_FILES)} below DIR, the repository, instead"
    )

    render = _command(commands, "render", _render, "print what the LLMServices of a file become, without a cluster")
    render.add_argument("file", metavar="FILE", help="YAML file, or - for standard input; other kinds are passed over")
    _add_building_flags(render)

    plan = _command(commands, "plan", _plan, "say whether the LLMServices of a file fit their GPUs, without a cluster")
    plan.add_argument("file", metavar="FILE", help="YAML file, or - for standard input; other kinds are passed over")
    plan.add_argument(
        "--config", type=Path, metavar="DIR", help="read the model from this checkpoint and not from the hub"
    )
    plan.add_argument(
        "--gpu-memory-gib", type=int, metavar="N", help="memory of a GPU, for services that do not say (default: table)"
    )
    plan.add_argument("--hub-endpoint", metavar="URL", help="a Hugging Face mirror; HF_TOKEN is its token")
    plan.add_argument("--cluster-domain", metavar="DOMAIN", help=argparse.SUPPRESS)
    _add_product_flag(plan)
    return parser


def _command(commands: Any, name: str, function: Any, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.set_defaults(command=function)
    return parser


def _add_building_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--engine-image", metavar="IMAGE", help=f"image of services that name none (default: {Settings().engine_image})"
    )
    parser.add_argument("--hub-endpoint", metavar="URL", help="a Hugging Face mirror, given to pods as HF_ENDPOINT")
    parser.add_argument(
        "--prometheus-address", metavar="URL", help="the Prometheus that autoscaling asks, for services that name none"
    )
    parser.add_argument("--cluster-domain", metavar="DOMAIN", help="the cluster's DNS domain (default: cluster.local)")
    parser.add_argument("--runbook-url", metavar="URL", help="where docs/operations.md can be read, for alerts")
    parser.add_argument(
        "--monitoring-namespace",
        action="append",
        dest="monitoring_namespaces",
        metavar="NAME",
        help="namespace that Prometheus scrapes from, let in by NetworkPolicies; may be repeated (default: none)",
    )


def _add_product_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gpu-product",
        action="append",
        dest="gpu_products",
        metavar="NAME=MIB",
        help="memory of a GPU that the plan does not know; may be repeated",
    )


def _settings(options: argparse.Namespace) -> Settings:
    flags = {key: value for key, value in vars(options).items() if key in Settings.__dataclass_fields__}
    for repeated in ("namespaces", "gpu_products", "gpu_hourly_prices", "monitoring_namespaces"):
        if flags.get(repeated) is not None:
            flags[repeated] = tuple(flags[repeated])
    return settings_from(os.environ, **flags)


def _run(options: argparse.Namespace) -> None:
    # kopf and aiohttp take most of a second to import, which the other commands need not wait for
    from quire_operator.kubeapi.login import LoginError
    from quire_operator.run.leader import LeadershipLostError
    from quire_operator.run.logs import set_up_logging
    from quire_operator.run.operator import run_operator

    settings = _settings(options)
    set_up_logging(settings.log_level)
    try:
        asyncio.run(run_operator(settings))
    except (LoginError, LeadershipLostError) as error:
        sys.exit(f"quire-operator run: {error}")


def _crd(options: argparse.Namespace) -> None:
    if options.write is None:
        sys.stdout.write(crd_manifest())
        return
    for file, helm in CRD_FILES.items():
        path: Path = options.write / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(crd_manifest(helm=helm))


def _render(options: argparse.Namespace) -> None:
    circumstances = Circumstances(_settings(options), EVERYTHING)
    children = []
    for service in _services(options.file):
        downloads = downloads_of(service, None)
        jobs = {download.key: download for download in downloads.values()}.values()
        children += [build_prefetch_job(service, download, circumstances) for download in jobs]
        revisions = {name: download.revision for name, download in downloads.items()}
        served = replace(
            circumstances,
            cached_revision=revisions.pop(None, None),
            cached_adapters={name: revision for name, revision in revisions.items() if name is not None},
        )
        children += [with_first_replicas(service, served, child) for child in desired_objects(service, served)]
        blocked = obstacle(service, circumstances)
        if blocked is not None:
            sys.stderr.write(f"{service.metadata.name} gets no scaler: {blocked.reason}: {blocked.message}\n")
    sys.stdout.write(yaml_text(children))


def _plan(options: argparse.Namespace) -> None:
    settings = _settings(options)
    plans = [
        (service, plan_offline(service, settings, options.config, options.gpu_memory_gib))
        for service in _services(options.file)
    ]
    tables = [
        plan_table(service.metadata.name, plan) + advice_lines(advice_of(service, plan, claim=claim_facts(service)))
        for service, plan in plans
    ]
    sys.stdout.write("\n".join(tables))
    if any(objection_of(plan) for _, plan in plans):
        sys.exit(1)


def _services(file: str) -> list[LLMService]:
    """The LLMServices of a file. Raises InvalidLLMServiceError when there is none, or one that cannot be served."""
    text = sys.stdin.read() if file == "-" else Path(file).read_text()
    manifests = [document for document in yaml.safe_load_all(text) if isinstance(document, dict)]
    services = [manifest for manifest in manifests if manifest.get("kind") == KIND]
    if not services:
        raise InvalidLLMServiceError(f"{file} holds no LLMService: write kind: {KIND}")
    found = []
    for manifest in services:
        service = parse_llmservice(manifest, strict=True)
        refusal = refusal_of(service.spec)
        if refusal is not None:
            raise InvalidLLMServiceError(f"{service.metadata.name}: {refusal.reason}: {refusal.message}")
        found.append(service)
    return found


if __name__ == "__main__":
    main()
