"""Where a model's weights come from: hf://ORG/NAME, pvc://CLAIM/PATH or image:///PATH."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from quire_operator.api.rule import Rule

_HUB = r"hf://[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*"
_CLAIM = r"pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/[A-Za-z0-9._/-]*)?"
_IMAGE = r"image:///[A-Za-z0-9._-][A-Za-z0-9._/-]*"


@dataclass(frozen=True)
class HubSource:
    """A repository of a Hugging Face hub."""

    repository: str
    """`org/name`."""


@dataclass(frozen=True)
class ClaimSource:
    """A directory on a PersistentVolumeClaim of the LLMService's namespace."""

    claim: str
    path: str
    """Below the claim's root, with no slash at either end; may be empty."""


@dataclass(frozen=True)
class ImageSource:
    """A directory of the engine's image."""

    path: str
    """Absolute."""


ModelSource = HubSource | ClaimSource | ImageSource


def parse_source(text: str) -> ModelSource:
    """What a `spec.model.source` names. Raises ValueError when it names nothing."""
    if re.fullmatch(_HUB, text):
        return HubSource(repository=text.removeprefix("hf://"))
    if re.fullmatch(_CLAIM, text):
        claim, _, path = text.removeprefix("pvc://").partition("/")
        return ClaimSource(claim=claim, path=path.strip("/"))
    if re.fullmatch(_IMAGE, text):
        return ImageSource(path=text.removeprefix("image://"))
    raise ValueError(f"{text!r} names no model: write hf://ORG/NAME, pvc://CLAIM/PATH or image:///PATH")


def _is(pattern: str, scheme: str) -> Rule:
    forms = {
        "hf": "hf://ORG/NAME, such as hf://meta-llama/Llama-3.1-8B-Instruct",
        "pvc": "pvc://CLAIM/PATH, such as pvc://models/llama",
        "image": "image:///PATH, such as image:///models/tiny",
    }
    return Rule(
        cel=f"!self.startsWith('{scheme}://') || self.matches('^{pattern}$')",
        message=f"a source that begins with {scheme}:// must be {forms[scheme]}",
        holds=lambda text: not text.startswith(f"{scheme}://") or re.fullmatch(pattern, text) is not None,
    )


SourceText = Annotated[
    str,
    Field(max_length=512),
    Rule(
        cel="self.startsWith('hf://') || self.startsWith('pvc://') || self.startsWith('image://')",
        message="a source must be hf://ORG/NAME, pvc://CLAIM/PATH or image:///PATH",
        holds=lambda text: text.startswith(("hf://", "pvc://", "image://")),
    ),
    _is(_HUB, "hf"),
    _is(_CLAIM, "pvc"),
    _is(_IMAGE, "image"),
]
"""A source, as text that `parse_source` accepts."""
