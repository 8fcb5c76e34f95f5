"""Weights of a model of transformers, by its own loader, which knows each class's names."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn

from quire_engine.loading.errors import CheckpointError
from quire_engine.memory_plan.safetensors_header import tensor_headers
from quire_engine.memory_plan.weight_files import weight_files
from quire_engine.models.transformers_backend.spec import TransformersSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_transformers(
    spec: TransformersSpec, directory: Path, dtype: torch.dtype, device: torch.device, *, trust_remote_code: bool
) -> PreTrainedModel:
    """The model on `device`, where its tensors come one by one: the host holds no copy of it.

    Raises `CheckpointError` for files that are missing or broken, and for tensors that do not fit config.json.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    # Its report of what does not fit is a table over many lines; the error below says it in one.
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        for file in weight_files(directory):
            tensor_headers(file)  # a file that was cut off is found here
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            config=spec.config,
            dtype=dtype,
            device_map={"": device},  # which takes the package accelerate
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
        )
    except (ValueError, SafetensorError, RuntimeError, OSError) as error:
        raise CheckpointError("InvalidCheckpoint", f"{directory} does not load: {error}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    model, found = loaded
    for name, stored, wanted in sorted(found["mismatched_keys"]):
        raise CheckpointError(
            "InvalidCheckpoint",
            f"{directory}: {name} has the shape {list(stored)} and config.json asks for {list(wanted)}",
        )
    for kind, verb in (("missing_keys", "lacks"), ("unexpected_keys", "holds, beside those of config.json's model,")):
        names = sorted(found[kind])
        if names:
            raise CheckpointError("InvalidCheckpoint", f"{directory} {verb} {len(names)} tensors, {names[0]} for one")
    return _for_answers(model)


def draw_transformers(
    spec: TransformersSpec, dtype: torch.dtype, device: torch.device, seed: int, *, trust_remote_code: bool
) -> PreTrainedModel:
    """The model with random weights, the same for the same seed."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    make: Callable[..., PreTrainedModel] = AutoModelForCausalLM.from_config
    with device:
        return _for_answers(make(spec.config, dtype=dtype, trust_remote_code=trust_remote_code))


def _for_answers(model: PreTrainedModel) -> PreTrainedModel:
    nn.Module.train(model, False)
    return model
