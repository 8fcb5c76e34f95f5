"""`spec.model`: which model is served, under which name, in which precision."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from quire_operator.api.fields import Fields
from quire_operator.api.model_source import SourceText
from quire_operator.api.names import SecretKeyRef
from quire_operator.api.rule import Rule

ServedName = Annotated[str, Field(min_length=1, max_length=253)]
Revision = Annotated[str, Field(min_length=1, max_length=128)]


class Adapter(Fields):
    """A LoRA adapter, served as a model of its own name."""

    name: ServedName
    """Name that requests ask for."""

    source: SourceText
    """hf://ORG/NAME, pvc://CLAIM/PATH or image:///PATH."""

    revision: Revision | None = None
    """Branch, tag or commit of an adapter on the hub; its default branch when unset."""

    rules = (
        Rule(
            cel="!has(self.revision) || self.source.startsWith('hf://')",
            message="an adapter's revision belongs to an hf:// source: leave it out",
            field=".revision",
            holds=lambda self: self.revision is None or self.source.startswith("hf://"),
        ),
    )


class Model(Fields):
    """The model that is served."""

    source: SourceText
    """hf://ORG/NAME from a Hugging Face hub, pvc://CLAIM/PATH from a claim, image:///PATH from the engine's image."""

    revision: Revision | None = None
    """Branch, tag or commit on the hub; its default branch when unset."""

    name: ServedName | None = None
    """Name that requests ask for; the LLMService's own when unset."""

    aliases: Annotated[list[ServedName], Field(max_length=16)] = Field(default_factory=list)
    """Further names for the same model."""

    token_secret_ref: SecretKeyRef | None = None
    """Token for a gated or private repository of the hub."""

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Type of weights and activations; auto takes the checkpoint's."""

    quantization: Literal["auto", "awq", "gptq", "fp8", "int8"] = "auto"
    """Scheme of quantized weights; auto reads it from the checkpoint. fp8 and int8 round float weights while they load.

    int8 is of type quire alone, for the CPU: there it is faster as well as smaller. On GPUs take fp8.
    """

    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    """Type of the KV cache; auto is that of the activations. Not supported yet by type quire: only auto."""

    max_model_len: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Longest prompt plus answer, in tokens; the model's own limit when unset."""

    trust_remote_code: bool = False
    """Run code that comes with the checkpoint."""

    adapters: Annotated[list[Adapter], Field(max_length=64)] = Field(
        default_factory=list,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    """LoRA adapters of this model."""
