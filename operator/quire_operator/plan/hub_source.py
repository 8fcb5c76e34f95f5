"""Which hub a service's model is on."""

from __future__ import annotations

import urllib.parse

from quire_operator.api import HubSource, LLMService, parse_source
from quire_operator.plan.gpu_memory import Skipped
from quire_operator.settings import Settings

HUB = "https://huggingface.co"


def hub_endpoint(service: LLMService, settings: Settings) -> str | Skipped:
    """URL of the hub that the pods would ask, without a slash at its end."""
    endpoint = settings.hub_endpoint or HUB
    for variable in service.spec.engine.env:
        if variable.get("name") != "HF_ENDPOINT":
            continue
        if "value" not in variable:
            return Skipped("HubUnknown", "spec.engine.env takes HF_ENDPOINT from elsewhere: write it as a value")
        endpoint = str(variable["value"])
    parts = urllib.parse.urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return Skipped("HubUnknown", "HF_ENDPOINT is no URL: write one such as https://huggingface.co")
    if "." not in parts.hostname and parts.hostname != "localhost" and ":" not in parts.hostname:
        # a pod finds Services of its own namespace by their names alone
        port = f":{parts.port}" if parts.port else ""
        host = f"{parts.hostname}.{service.metadata.namespace}.svc.{settings.cluster_domain}{port}"
        parts = parts._replace(netloc=host)
    return urllib.parse.urlunsplit(parts).rstrip("/")


def hub_refused(service: LLMService, settings: Settings) -> Skipped | None:
    """Why the operator, which others' networks trust, does not ask the hub that a service's author chose."""
    if settings.plan_reads_any_hub or not any(v.get("name") == "HF_ENDPOINT" for v in service.spec.engine.env):
        return None
    text = "spec.engine.env sets HF_ENDPOINT, and the operator asks only its own hub: see the chart's planReadsAnyHub"
    return Skipped("ForeignHub", text)


def repository_of(service: LLMService) -> str:
    """`org/name`. Raises TypeError for a model that is on no hub."""
    source = parse_source(service.spec.model.source)
    if not isinstance(source, HubSource):
        raise TypeError(f"{service.spec.model.source} is on no hub")
    return source.repository
