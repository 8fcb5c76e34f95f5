"""From what the API server or a file holds to an LLMService."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from quire_operator.api.llmservice import LLMService, Metadata

_METADATA = tuple(Metadata.model_fields)


class InvalidLLMServiceError(ValueError):
    """Says, field by field, what is wrong and what to write instead."""


def parse_llmservice(manifest: Mapping[str, Any], *, strict: bool = False) -> LLMService:
    """Read an LLMService. Raises InvalidLLMServiceError.

    Unknown fields are dropped, as a newer operator's objects may have some; with `strict` they are errors.
    """
    body = {key: value for key, value in manifest.items() if key not in ("metadata", "status")}
    metadata = manifest.get("metadata") or {}
    body["metadata"] = {key: metadata[key] for key in _METADATA if metadata.get(key) is not None}
    body["status"] = {} if strict else manifest.get("status") or {}
    try:
        return LLMService.model_validate(body, extra="forbid" if strict else "ignore", by_name=False, by_alias=True)
    except ValidationError as error:
        raise InvalidLLMServiceError("; ".join(_sentences(error))) from None


def _sentences(error: ValidationError) -> list[str]:
    sentences = []
    for detail in error.errors():
        where = ".".join(str(part) for part in detail["loc"])
        what = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            what = "unknown field: check its spelling"
        sentences.append(f"{where}: {what}" if where else what)
    return sentences
