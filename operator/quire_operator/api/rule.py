"""A rule of the API, written once for both places that check it: the API server (CEL) and our own parsing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a value must satisfy, and what to tell whoever wrote one that does not.

    As metadata of an `Annotated` type it checks that value; in a model's `rules` it checks the whole model.
    """

    cel: str
    """The rule as the API server evaluates it; `self` is the value."""

    message: str
    """Says what is wrong and what to write instead, naming fields from `spec` on."""

    holds: Callable[[Any], bool] | None
    """The same rule on the parsed value. None where only the API server can tell, as with `oldSelf`."""

    field: str | None = None
    """Path below the value that the API server's error points to, such as `.replicas`."""

    def as_validation(self) -> dict[str, str]:
        """The entry under `x-kubernetes-validations`."""
        validation = {"rule": self.cel, "message": self.message}
        if self.field is not None:
            validation["fieldPath"] = self.field
        return validation

    def check(self, value: Any) -> Any:
        """Return `value`; raises what pydantic reports as a validation error with exactly our message."""
        if self.holds is not None and not self.holds(value):
            raise PydanticCustomError("rule", "{message}", {"message": self.message})
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        json_schema = handler(schema)
        json_schema.setdefault("x-kubernetes-validations", []).append(self.as_validation())
        return json_schema
