"""The engine's environment."""

from __future__ import annotations

from quire_operator.api import LLMService
from quire_operator.api.quantity import parse_quantity
from quire_operator.builders.cached_model import is_offline
from quire_operator.builders.circumstances import Circumstances
from quire_operator.builders.downloader import hub_variables, plain, secret
from quire_operator.builders.engines import engine_of
from quire_operator.builders.identity import Manifest
from quire_operator.builders.paths import HOME, hub_home


def engine_env(service: LLMService, circumstances: Circumstances) -> list[Manifest]:
    """Variables of the container, spec.engine.env last; a name that it repeats replaces ours."""
    ours = [
        plain("HOME", HOME),
        plain("OMP_NUM_THREADS", str(threads(service))),
        *(plain(name, value) for name, value in engine_of(service).variables.items()),
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
        return [plain("HF_HUB_OFFLINE", "1")]
    variables = [plain("HF_HOME", home)]
    if is_offline(service, circumstances):
        # the claim is mounted read-only, and a model's own code is copied before it is run
        modules = f"{HOME}/huggingface/modules"
        return [*variables, plain("HF_HUB_OFFLINE", "1"), plain("HF_MODULES_CACHE", modules)]
    return [*variables, *hub_variables(service, circumstances.settings)]


def _api_key(service: LLMService) -> list[Manifest]:
    key, variable = service.spec.security.api_key_secret_ref, engine_of(service).api_key_variable
    return [secret(variable, key)] if key is not None and variable is not None else []
