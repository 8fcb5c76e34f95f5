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

Image = Annotated[
    str,
    Field(min_length=1, max_length=512),
    Rule(
        cel=f"self.matches('^{_TAGGED}$') && !self.endsWith(':latest')",
        message="an image must be pinned: write a tag other than latest, or a digest, such as quire/engine:0.1.0",
        holds=lambda text: re.fullmatch(_TAGGED, text) is not None and not text.endswith(":latest"),
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


class Engine(Fields):
    """The engine in every pod."""

    type: Literal["quire", "vllm", "tgi", "trtllm", "custom"] = "quire"
    """Whose engine the image holds. Not supported yet: only quire."""

    image: Image | None = None
    """Image of the engine, pinned; the operator's default when unset."""

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
    """GiB of host memory per GPU for the pages of preempted requests. Not supported yet: they are computed anew."""

    prefix_caching: bool = True
    """Reuse the pages of prompts that begin alike."""

    chunked_prefill: bool = True
    """Split long prompts over steps, so that running answers never wait for them."""

    enforce_eager: bool = False
    """Run without CUDA graphs."""

    speculative: Speculative | None = None
    """Speculative decoding. Not supported yet."""

    args: Annotated[list[Annotated[str, Field(max_length=4096)]], Field(max_length=128)] = Field(default_factory=list)
    """Further flags, appended last, so that they win."""

    env: Annotated[list[EnvVar], Field(max_length=256)] = Field(
        default_factory=list,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    """Environment of the engine, as a container's `env`."""
