"""The base of every model of the API."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.alias_generators import to_camel

from quire_operator.api.rule import Rule


class Fields(BaseModel):
    """A group of fields: camelCase outside, snake_case inside, immutable, each described by its docstring."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        use_attribute_docstrings=True,
        frozen=True,
    )

    rules: ClassVar[tuple[Rule, ...]] = ()
    """What must hold between the fields. The CRD carries these as CEL."""

    @model_validator(mode="after")
    def _obeys_its_rules(self) -> Self:
        for rule in self.rules:
            rule.check(self)
        return self
