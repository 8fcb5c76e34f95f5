"""Any other engine: started as the spec says, and told in its environment what to serve."""

from __future__ import annotations

from quire_operator.api import LLMService
from quire_operator.api.engine import CustomMetrics
from quire_operator.builders.engines.engine import (
    ENDPOINTS_LAG_SECONDS,
    FOREIGN_IMAGE,
    Engine,
    Metrics,
    wait_for_proxies,
)
from quire_operator.builders.engines.group import group_variables
from quire_operator.builders.paths import model_location

PORT = 8000
"""Where the spec names no port."""


def custom(service: LLMService) -> Engine:
    """The kubelet puts variables into command and args where they say `$(MODEL)`."""
    spec = service.spec.engine
    port = spec.port or PORT
    names = spec.metrics or CustomMetrics()
    variables = {
        **FOREIGN_IMAGE,
        "MODEL": model_location(service),
        "SERVED_MODEL_NAME": service.served_name,
        "PORT": str(port),
        **group_variables(service),
    }
    if service.spec.model.revision is not None:
        variables["REVISION"] = service.spec.model.revision
    return Engine(
        name="custom",
        command=tuple(spec.command),
        args=tuple(spec.args),
        worker_args=tuple(spec.args),
        variables=variables,
        api_key_variable="API_KEY",
        port=port,
        health_path=spec.health_path or "/health",
        metrics_path=names.path,
        metrics=Metrics(
            waiting=names.waiting,
            running=names.running,
            time_to_first_token=names.time_to_first_token,
            time_per_output_token=names.time_per_output_token,
        ),
        pre_stop=wait_for_proxies(),
        pre_stop_seconds=ENDPOINTS_LAG_SECONDS,
    )
