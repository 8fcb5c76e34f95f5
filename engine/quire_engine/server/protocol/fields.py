"""Kinds of fields that several requests have."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from quire_engine.sampling_params import MAX_LOGIT_BIAS

MAX_LOGPROBS = 20  # OpenAI's


def _whole_characters(text: str) -> str:
    """JSON can spell half a surrogate pair, which is no character: no tokenizer and no encoding takes it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ord(text[error.start])
        raise ValueError(f"\\u{half:x} is half of a surrogate pair: write both halves, or leave it out") from error
    return text


Text = Annotated[str, AfterValidator(_whole_characters)]
# The first wrong element is reported, and no error is made for each of a million others.
TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(fail_fast=True)]


def _few_entries(biases: object) -> object:
    """Looked at first, so that no error is made for each of a million wrong entries."""
    if isinstance(biases, dict) and len(biases) > MAX_LOGIT_BIAS:
        raise ValueError(f"logit_bias holds {len(biases)} tokens: it must be at most {MAX_LOGIT_BIAS}")
    return biases


LogitBias = Annotated[dict[int, float], BeforeValidator(_few_entries)]
Logprobs = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]
CacheSalt = Annotated[str, Field(min_length=1), AfterValidator(_whole_characters)]
