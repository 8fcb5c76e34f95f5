"""The families that are served, and the small models of each that tests compare with transformers.

`docs/write_models.py` makes the table of docs/models.md of it.
"""

from __future__ import annotations

from typing import Any

from tests.engine.models.families_like_gpt import LIKE_GPT
from tests.engine.models.families_like_llama import LIKE_LLAMA
from tests.engine.models.families_of_encoders import ENCODERS
from tests.engine.models.families_with_experts import WITH_EXPERTS
from tests.engine.models.families_with_images import WITH_IMAGES
from tests.engine.models.family import Family

__all__ = ["CASES", "ENCODERS", "ENCODER_CASES", "FAMILIES", "Family"]

FAMILIES = [*LIKE_LLAMA, *LIKE_GPT, *WITH_EXPERTS, *WITH_IMAGES]

CASES: dict[str, tuple[Family, dict[str, Any]]] = {
    f"{family.architecture}: {name}": (family, settings)
    for family in FAMILIES
    for name, settings in family.cases.items()
}
ENCODER_CASES: dict[str, tuple[Family, dict[str, Any]]] = {
    f"{family.architecture}: {name}": (family, settings)
    for family in ENCODERS
    for name, settings in family.cases.items()
}
