"""What the other builders need to know of an engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from quire_operator.builders.identity import Manifest
from quire_operator.builders.paths import HOME

ENDPOINTS_LAG_SECONDS = 5
"""How long proxies may go on sending requests to a pod that is leaving."""

FOREIGN_IMAGE: Mapping[str, str] = {
    # torch asks for the user's name as it is imported, and others' images have none for our uid
    "USER": "quire",
    "XDG_CACHE_HOME": f"{HOME}/.cache",
    "XDG_CONFIG_HOME": f"{HOME}/.config",
    "NUMBA_CACHE_DIR": f"{HOME}/.cache/numba",
    "TORCHINDUCTOR_CACHE_DIR": f"{HOME}/.cache/torchinductor",
    "TRITON_CACHE_DIR": f"{HOME}/.cache/triton",
    # reports to an engine's makers are for whoever runs the cluster to allow
    "DO_NOT_TRACK": "1",
}
"""What lets an image that was made for root run as our user, on a read-only root, and to itself."""


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Names under which Prometheus finds what scaling and dashboards ask for; None for what an engine does not tell."""

    waiting: str | None = None
    """Gauge: requests that wait."""

    running: str | None = None
    """Gauge: requests that are being answered."""

    time_to_first_token: str | None = None
    """Histogram in seconds, without its `_bucket`."""

    time_per_output_token: str | None = None
    """Histogram in seconds, without its `_bucket`."""

    kv_cache_usage: str | None = None
    """Gauge: share of the KV cache that is taken, from 0 to 1."""

    generated_tokens: str | None = None
    """Counter: tokens of answers."""

    steps: str | None = None
    """Counter: steps of the model, those of prompts included."""

    preemptions: str | None = None
    """Counter: requests that gave up their KV cache to others."""

    time_to_first_token_buckets: tuple[float, ...] = ()
    """Bounds of that histogram, in seconds; none where they are not known, and then there is no objective for it."""

    time_per_output_token_buckets: tuple[float, ...] = ()
    """Bounds of that histogram, in seconds."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """How the engine of one service is started, reached, watched and sent away."""

    name: str
    """As messages call it: the `spec.engine.type`."""

    command: tuple[str, ...] = ()
    """Replaces the entrypoint of the image; empty keeps it."""

    args: tuple[str, ...] = ()
    """Arguments, spec.engine.args last."""

    worker_args: tuple[str, ...] = ()
    """Arguments in those pods of a group that follow its leader."""

    variables: Mapping[str, str] = field(default_factory=dict)
    """Environment beside what every engine gets."""

    api_key_variable: str | None = None
    """Variable that the engine reads the key of requests from; None when it knows of none."""

    port: int = 8000
    """Where it listens for HTTP."""

    health_path: str = "/health"
    """Answers 200 once, and while, the engine serves."""

    metrics_path: str = "/metrics"
    """Where Prometheus reads, on the same port."""

    metrics: Metrics = Metrics()
    """What it finds there."""

    pre_stop: Manifest
    """Handler that returns when no proxy sends requests any more; SIGTERM comes after it."""

    pre_stop_seconds: int
    """The longest that `pre_stop` takes."""

    @property
    def is_scraped(self) -> bool:
        """Whether Prometheus finds anything worth asking for."""
        return self.metrics != Metrics()


def wait_for_proxies() -> Manifest:
    """The handler for engines that cannot be told to drain: the kubelet itself waits, so the image needs no shell."""
    return {"sleep": {"seconds": ENDPOINTS_LAG_SECONDS}}
