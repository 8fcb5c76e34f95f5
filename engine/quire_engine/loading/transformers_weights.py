"""Weights of a model of transformers, by its own loader, which knows each class's names."""

from __future__ import annotations

import logging
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn

from quire_engine.loading.errors import CheckpointError
from quire_engine.memory_plan.weight_files import checkpoint_headers
from quire_engine.models.transformers_backend.spec import TransformersSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_transformers(
    spec: TransformersSpec, directory: Path, dtype: torch.dtype, device: torch.device, *, trust_remote_code: bool
) -> PreTrainedModel:
    """The model on `device`, where its tensors come one by one: the host holds no copy of it.

    Raises `CheckpointError` for files that are missing or broken, and for tensors that do not fit config.json, before
    any of them is read.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    # Its report of what does not fit is a table over many lines; the error says it in one.
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        _check_tensors(spec, directory, trust_remote_code=trust_remote_code)
        load: Callable[..., PreTrainedModel] = AutoModelForCausalLM.from_pretrained
        model = load(
            directory,
            config=spec.config,
            dtype=dtype,
            device_map={"": device},  # which takes the package accelerate
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
        )
    except (ValueError, SafetensorError, RuntimeError, OSError) as error:
        raise CheckpointError("InvalidCheckpoint", f"{directory} does not load: {error}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    return _for_answers(model)


def _check_tensors(spec: TransformersSpec, directory: Path, *, trust_remote_code: bool) -> None:
    """Have the loader, which renames and joins tensors as each class needs it, load what takes no memory.

    Raises `CheckpointError` for tensors that do not fit, and whatever the loader raises.
    """
    # A file that was cut off is found here.
    tensors = {name: torch.empty(t.shape, device="meta") for name, t in checkpoint_headers(directory).items()}
    kind: Any = type(_empty(spec, torch.float32, torch.device("meta"), trust_remote_code=trust_remote_code))
    _, found = kind.from_pretrained(
        None,
        config=deepcopy(spec.config),
        state_dict=tensors,
        device_map={"": torch.device("meta")},
        ignore_mismatched_sizes=True,  # they are refused below, by name
        output_loading_info=True,
    )
    for name, stored, wanted in sorted(found["mismatched_keys"]):
        raise CheckpointError(
            "InvalidCheckpoint",
            f"{directory}: {name} has the shape {list(stored)} and config.json asks for {list(wanted)}",
        )
    for kind, verb in (("missing_keys", "lacks"), ("unexpected_keys", "holds, beside those of config.json's model,")):
        names = sorted(found[kind])
        if names:
            raise CheckpointError("InvalidCheckpoint", f"{directory} {verb} {len(names)} tensors, {names[0]} for one")


def draw_transformers(
    spec: TransformersSpec, dtype: torch.dtype, device: torch.device, seed: int, *, trust_remote_code: bool
) -> PreTrainedModel:
    """The model with random weights, the same for the same seed."""
    torch.manual_seed(seed)
    return _for_answers(_empty(spec, dtype, device, trust_remote_code=trust_remote_code))


def _empty(
    spec: TransformersSpec, dtype: torch.dtype, device: torch.device, *, trust_remote_code: bool
) -> PreTrainedModel:
    """The model as its class makes it, before weights are loaded."""
    from transformers import AutoModelForCausalLM

    make: Callable[..., PreTrainedModel] = AutoModelForCausalLM.from_config
    with device:
        return make(deepcopy(spec.config), dtype=dtype, trust_remote_code=trust_remote_code)


def _for_answers(model: PreTrainedModel) -> PreTrainedModel:
    nn.Module.train(model, False)
    return model
