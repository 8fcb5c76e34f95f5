"""How the config.json of one class of models is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from quire_engine.memory_plan.config_fields import Config


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """How the config.json of one class is read."""

    names: Mapping[str, str] = field(default_factory=dict)
    """What a size is called there, by its common name. They are whole numbers."""

    defaults: Config = field(default_factory=dict)
    """What may be left out, by the common names."""

    derived: Callable[[Config], Config] = lambda _: {}
    """What follows from other fields, by the common names."""

    float32: tuple[str, ...] = ()
    """Endings of tensors that are kept in float32, whatever type is served."""

    unused: tuple[str, ...] = ()
    """Beginnings of tensors that are not loaded."""

    tower: tuple[str, ...] = ()
    """Beginnings of tensors that belong to an encoder of images, which each GPU has whole."""

    decoders: Mapping[str, tuple[str, Config]] = field(default_factory=dict)
    """Where the decoder's sizes stand in `text_config`: its class and what may be left out, by its `model_type`."""

    flat: bool = False
    """Whether the decoder's sizes stand among the whole model's own settings where there is no `text_config`."""
