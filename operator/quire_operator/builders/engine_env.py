"""The engine's environment."""

from __future__ import annotations

from quire_operator.api import LLMService
from quire_operator.api.names import SecretKeyRef
from quire_operator.api.quantity import parse_quantity
from quire_operator.builders.cached_model import is_offline
from quire_operator.builders.circumstances import Circumstances
from quire_operator.builders.engines import engine_of
from quire_operator.builders.identity import Manifest
from quire_operator.builders.paths import HOME, hub_home


def engine_env(service: LLMService, circumstances: Circumstances) -> list[Manifest]:
    """Variables of the container, spec.engine.env last; a name that it repeats replaces ours."""
    ours = [
        _plain("HOME", HOME),
        _plain("OMP_NUM_THREADS", str(threads(service))),
        *(_plain(name, value) for name, value in engine_of(service).variables.items()),
        *_hub(service, circumstances),
        *_api_key(service),
    ]
    theirs = service.spec.engine.env
    replaced = {variable["name"] for variable in theirs}
    return [*(variable for variable in ours if variable["name"] not in replaced), *theirs]


def threads(service: LLMService) -> int:
    """Threads that the engine computes with: the CPU limit, else the request, rounded down, at least 1."""
    resources = service.spec.resources
    return max(1, int(parse_quantity(resources.cpu_limit or resources.cpu)))


def _hub(service: LLMService, circumstances: Circumstances) -> list[Manifest]:
    home = hub_home(service)
    if home is None:
        # the weights are here already, and a pod without a way out must not wait for a hub
        return [_plain("HF_HUB_OFFLINE", "1")]
    variables = [_plain("HF_HOME", home)]
    if is_offline(service, circumstances.cached_revision):
        # the claim is mounted read-only, and a model's own code is copied before it is run
        modules = f"{HOME}/huggingface/modules"
        return [*variables, _plain("HF_HUB_OFFLINE", "1"), _plain("HF_MODULES_CACHE", modules)]
    if circumstances.settings.hub_endpoint:
        variables.append(_plain("HF_ENDPOINT", circumstances.settings.hub_endpoint))
    token = service.spec.model.token_secret_ref
    if token is not None:
        variables += [_secret(name, token) for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")]
    return variables


def _api_key(service: LLMService) -> list[Manifest]:
    key, variable = service.spec.security.api_key_secret_ref, engine_of(service).api_key_variable
    return [_secret(variable, key)] if key is not None and variable is not None else []


def _plain(name: str, value: str) -> Manifest:
    return {"name": name, "value": value}


def _secret(name: str, ref: SecretKeyRef) -> Manifest:
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": ref.name, "key": ref.key}}}
