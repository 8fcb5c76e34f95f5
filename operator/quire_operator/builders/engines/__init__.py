"""One file for each engine: what the fields of an LLMService become on its command line and in its environment."""

from quire_operator.api import LLMService
from quire_operator.builders.engines.custom import custom
from quire_operator.builders.engines.engine import Engine, Metrics
from quire_operator.builders.engines.quire import quire
from quire_operator.builders.engines.tgi import tgi
from quire_operator.builders.engines.trtllm import trtllm
from quire_operator.builders.engines.vllm import vllm

__all__ = ["Engine", "Metrics", "engine_of"]

_ENGINES = {"quire": quire, "vllm": vllm, "tgi": tgi, "trtllm": trtllm, "custom": custom}


def engine_of(service: LLMService) -> Engine:
    """The engine that `spec.engine.type` names, set up for this service."""
    return _ENGINES[service.spec.engine.type](service)
