"""`spec.engine`: the program that serves the model, and how it is tuned."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field

from quire_operator.api.fields import Fields
from quire_operator.api.model_source import SourceText
from quire_operator.api.names import EnvVar
from quire_operator.api.rule import Rule

_TAGGED = r".+(:[A-Za-z0-9_][A-Za-z0-9_.-]*|@sha256:[0-9a-f]{64})"


def is_pinned(image: str) -> bool:
    """Whether an image's name says which one it is: by a tag that is not moved, or a digest."""
    return re.fullmatch(_TAGGED, image) is not None and not image.endswith(":latest")


Image = Annotated[
    str,
    Field(min_length=1, max_length=512),
    Rule(
        cel=f"self.matches('^{_TAGGED}$') && !self.endsWith(':latest')",
        message="an image must be pinned: write a tag other than latest, or a digest, such as quire/engine:0.1.0",
        holds=is_pinned,
    ),
]


class Speculative(Fields):
    """Speculative decoding: several tokens proposed cheaply, checked in one step of the model."""

    method: Literal["ngram", "draft"]
    """Where proposals come from: the request's own text, or a smaller model."""

    model: SourceText | None = None
    """The smaller model, for method draft."""

    num_tokens: Annotated[int, Field(ge=1, le=32)] = 5
    """Tokens proposed in each step."""

    rules = (
        Rule(
            cel="(self.method == 'draft') == has(self.model)",
            message="spec.engine.speculative.model belongs to method draft: set it there, and leave it out for ngram",
            field=".model",
            holds=lambda self: (self.method == "draft") == (self.model is not None),
        ),
    )


_METRIC = r"[a-zA-Z_:][a-zA-Z0-9_:]*"

MetricName = Annotated[
    str,
    Field(max_length=256),
    Rule(
        cel=f"self.matches('^{_METRIC}$')",
        message="not the name of a metric: write letters, digits, '_' and ':', such as vllm:num_requests_waiting",
        holds=lambda text: re.fullmatch(_METRIC, text) is not None,
    ),
]

HttpPath = Annotated[
    str,
    Field(max_length=512),
    Rule(
        cel="self.startsWith('/')",
        message="a path begins with /, such as /health",
        holds=lambda text: text.startswith("/"),
    ),
]

Argument = Annotated[str, Field(max_length=4096)]


class CustomMetrics(Fields):
    """Names under which an engine of type custom tells Prometheus what it is doing."""

    path: HttpPath = "/metrics"
    """Where Prometheus reads, on the engine's port."""

    waiting: MetricName | None = None
    """Gauge of the requests that wait; autoscaling.queueDepth needs it."""

    running: MetricName | None = None
    """Gauge of the requests that are being answered."""

    time_to_first_token: MetricName | None = None
    """Histogram in seconds, without its _bucket."""

    time_per_output_token: MetricName | None = None
    """Histogram in seconds, without its _bucket."""


_ONLY_CUSTOM = {"command": "command", "port": "port", "healthPath": "health_path", "metrics": "metrics"}
"""Fields of type custom alone, with their names in Python."""


def _only_custom(field: str, name: str) -> Rule:
    return Rule(
        cel=f"!has(self.{field}) || has(self.type) && self.type == 'custom'",
        message=f"spec.engine.{field} belongs to spec.engine.type custom, the other types know theirs: leave it out",
        field=f".{field}",
        holds=lambda self: self.type == "custom" or not getattr(self, name),
    )


class Engine(Fields):
    """The engine in every pod."""

    type: Literal["quire", "vllm", "tgi", "trtllm", "custom"] = "quire"
    """Whose engine the image holds: Quire's, vLLM, Text Generation Inference, TensorRT-LLM, or any other."""

    image: Image | None = None
    """Image of the engine, pinned; for type quire the operator's default when unset, and needed by the others."""

    command: Annotated[list[Argument], Field(max_length=64)] = Field(default_factory=list)
    """For type custom: program and first arguments, in place of the image's entrypoint; $(MODEL) is filled in."""

    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """For type custom: where the engine listens; 8000 when unset. It is told as PORT."""

    health_path: HttpPath | None = None
    """For type custom: what answers 200 once, and while, the engine serves; /health when unset."""

    metrics: CustomMetrics | None = None
    """For type custom: what the engine tells Prometheus; nothing when unset."""

    gpu_memory_utilization: Annotated[
        float,
        Rule(
            cel="self > 0.0 && self <= 1.0",
            message="a share of the GPU's memory is above 0 and at most 1, such as 0.9",
            holds=lambda share: 0.0 < share <= 1.0,
        ),
    ] = 0.9
    """Share of each device's memory that the engine may use."""

    max_num_seqs: Annotated[int, Field(ge=1, le=65536)] = 256
    """Requests that may run at once in one replica."""

    max_num_batched_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Tokens that one step may compute; when unset 8192 on a GPU and 2048 on CPU."""

    block_size: Literal[8, 16, 32, 64, 128] = 16
    """Tokens in a page of the KV cache."""

    swap_space_gib: Annotated[float, Field(ge=0, le=4096)] = Field(default=4, alias="swapSpaceGiB")
    """GiB of host memory per GPU for the pages of preempted requests; 4 is what fits of it, and none without a GPU.
    Type quire only."""

    prefix_caching: bool = True
    """Reuse the pages of prompts that begin alike."""

    chunked_prefill: bool = True
    """Split long prompts over steps, so that running answers never wait for them."""

    enforce_eager: bool = False
    """Run without CUDA graphs."""

    speculative: Speculative | None = None
    """Speculative decoding. Not supported yet by type quire; vllm has both methods, tgi has ngram."""

    args: Annotated[list[Argument], Field(max_length=128)] = Field(default_factory=list)
    """Further flags, appended last, so that they win. For type custom all there are; $(MODEL) is filled in."""

    env: Annotated[list[EnvVar], Field(max_length=256)] = Field(
        default_factory=list,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    """Environment of the engine, as a container's `env`."""

    # the API server checks the default `{}` of spec.engine before it fills it, hence `has`
    rules = (
        Rule(
            cel="!has(self.type) || self.type == 'quire' || has(self.image)",
            message="spec.engine.image is needed unless spec.engine.type is quire: "
            "name the engine's image with its tag, such as vllm/vllm-openai:v0.32.0",
            field=".image",
            holds=lambda self: self.type == "quire" or self.image is not None,
        ),
        Rule(
            cel="!has(self.type) || self.type != 'custom'"
            " || has(self.command) && self.command.size() > 0 || has(self.args) && self.args.size() > 0",
            message="spec.engine.type custom needs spec.engine.command or args: write how the engine is started, "
            "such as command: [serve, $(MODEL)]",
            field=".command",
            holds=lambda self: self.type != "custom" or bool(self.command or self.args),
        ),
        *(_only_custom(field, name) for field, name in _ONLY_CUSTOM.items()),
    )
