"""The adapter that prompts of an offline engine choose, as vLLM's scripts write it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LoRARequest:
    """An adapter by name, and the folder that it is in. `lora_int_id` is vLLM's, and has no effect here.

    Raises `ValueError` for an empty name or folder.
    """

    lora_name: str
    lora_int_id: int = 1
    lora_path: str = ""

    def __post_init__(self) -> None:
        for field in ("lora_name", "lora_path"):
            if not getattr(self, field):
                raise ValueError(f"{field} is empty: LoRARequest takes a name, a number and the adapter's folder")
