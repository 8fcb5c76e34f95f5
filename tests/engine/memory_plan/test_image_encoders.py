"""What the plan sets aside for images is what encoding them takes."""

from __future__ import annotations

import copy
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from quire_engine.core.merged_patches import MergedCount
from quire_engine.layers.linear import create_weights
from quire_engine.memory_plan.image_encoders import image_sizes
from quire_engine.memory_plan.model_facts import ModelFacts
from quire_engine.memory_plan.plan import activation_bytes
from quire_engine.models.registry import decoder_spec
from tests.engine.memory_plan.test_plan import ON_GPU
from tests.engine.models.families import CASES

pytestmark = pytest.mark.usefixtures("one_thread")

LARGER: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 4, "image_size": 64}
# Of Qwen2-VL images are as large as the image processor lets them be: see below.
WITH_IMAGES = [name for name, (_, own) in CASES.items() if "vision_config" in own and not name.startswith("Qwen2VL")]


class LiveBytes(TorchDispatchMode):
    """The most bytes of tensors, made within, that were there at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def config_of(name: str) -> dict[str, Any]:
    """As its class writes it, with an encoder that is not much smaller than its pixels."""
    family, settings = CASES[name]
    settings = copy.deepcopy(dict(settings))
    settings["vision_config"] = settings["vision_config"] | LARGER
    if "image_grid_pinpoints" in settings:
        settings["image_grid_pinpoints"] = [
            [side // 24 * 64 for side in size] for size in settings["image_grid_pinpoints"]
        ]
    written: dict[str, Any] = getattr(transformers, family.config)(**settings).to_dict()
    return written | {"architectures": [family.architecture]}


@pytest.mark.parametrize("name", WITH_IMAGES)
@torch.inference_mode()
def test_encoding_the_largest_image_takes_what_is_planned(name: str) -> None:
    spec = decoder_spec(config_of(name))
    vision = spec.vision
    assert vision is not None
    encoder = vision.build(spec.shape.hidden_size).eval()
    create_weights(encoder, None)
    sizes = [(n * 64, m * 64) for n in range(1, 37) for m in range(1, 37) if n * m <= 36]
    width, height = max(sizes, key=lambda size: vision.count.of(*size))
    inputs = {name: torch.ones(shape) for name, shape in vision.inputs(width, height).items()}
    inputs["image_sizes"] = torch.tensor([[height, width]])
    with LiveBytes() as live:
        rows = encoder(inputs)
    assert len(rows) == spec.shape.image_tokens
    taken = live.most + 4 * sum(x.numel() for x in inputs.values())
    assert taken <= 4 * spec.shape.image_elements <= 2.5 * taken


OTHERS = {
    "Phi4MultimodalForCausalLM: images": (
        {"hidden_size": 64, "intermediate_size": 256},
        {"dynamic_hd": 30},
        (64, 1920),
    ),
    "Qwen2VLForConditionalGeneration: positions by time, height and width": (
        {"embed_dim": 64, "mlp_ratio": 4},
        {"max_pixels": 4096},
        (1600, 8),  # of a square it would have less
    ),
}


@pytest.mark.parametrize("name", OTHERS)
@torch.inference_mode()
def test_encoding_the_largest_image_that_its_processor_lets_through_takes_what_is_planned(name: str) -> None:
    larger, settings, (width, height) = OTHERS[name]
    family, own = CASES[name]
    own = own | {"vision_config": own["vision_config"] | larger}
    config = getattr(transformers, family.config)(**copy.deepcopy(own)).to_dict()
    spec = decoder_spec(config | {"architectures": [family.architecture]})
    assert spec.vision is not None
    vision = spec.vision.prepared_by(settings)
    encoder = vision.build(spec.shape.hidden_size).eval()
    create_weights(encoder, None)
    for parameter in encoder.parameters():
        parameter.zero_()
    inputs = {name: torch.ones(shape) for name, shape in vision.inputs(width, height).items()}
    inputs["image_sizes"] = torch.tensor([[height, width]])
    rows, columns = vision.count.grid(width, height) if isinstance(vision.count, MergedCount) else (0, 0)
    inputs["image_grid_thw"] = torch.tensor([[1, 2 * rows, 2 * columns]])
    given = 4 * sum(x.numel() for name, x in inputs.items() if name.endswith("pixel_values"))
    with LiveBytes() as live:
        rows = encoder(inputs)
    sizes = image_sizes(config, family.architecture, spec.shape.hidden_size, settings)
    assert sizes is not None
    assert len(rows) == sizes.tokens
    assert live.most + given <= 4 * sizes.elements <= 2.5 * (live.most + given)


@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 200), st.integers(1, 4000), st.integers(1, 200))
def test_no_image_of_qwen2_vl_has_more_tokens_than_are_planned(
    least: int, more: int, fraction: int, side: int, ratio: int
) -> None:
    low, high = 64 * least - min(fraction, 63), 64 * (least + more)
    vision = {"patch_size": 4, "spatial_merge_size": 2, "embed_dim": 8}
    config = {"vision_config": vision}
    settings = {"min_pixels": low, "max_pixels": high}
    sizes = image_sizes(config, "Qwen2VLForConditionalGeneration", 8, settings)
    assert sizes is not None
    count = MergedCount(8, low, high)
    assert max(count.of(side * ratio, side), count.of(side, side * ratio)) <= sizes.tokens


def test_the_plan_of_a_real_model_sets_memory_aside_for_its_largest_image() -> None:
    """As llava-hf/llava-v1.6-mistral-7b-hf has it."""
    config = {
        "architectures": ["LlavaNextForConditionalGeneration"],
        "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
        "image_token_index": 32000,
        "text_config": {
            "architectures": ["MistralForCausalLM"],
            "intermediate_size": 14336,
            "max_position_embeddings": 32768,
            "model_type": "mistral",
            "num_key_value_heads": 8,
            "rope_theta": 1000000.0,
            "sliding_window": None,
            "vocab_size": 32064,
        },
        "torch_dtype": "float16",
        "vision_config": {
            "hidden_size": 1024,
            "image_size": 336,
            "intermediate_size": 4096,
            "model_type": "clip_vision_model",
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "patch_size": 14,
        },
        "vision_feature_layer": -2,
    }
    shape = ModelFacts.of(config, {}).shape
    assert (shape.image_tokens, shape.hidden_size, shape.num_layers) == (2928, 4096, 32)
    assert 100e6 < 2 * shape.image_elements < 200e6
    more = [activation_bytes(replace(ON_GPU, shape=one)) for one in (replace(shape, image_tokens=0), shape)]
    assert more[1] - more[0] == 2 * (8192 + 2928) * 4096 * 2
    huge, twice = (activation_bytes(replace(ON_GPU, shape=replace(shape, image_elements=n << 40))) for n in (1, 2))
    assert twice - huge == 2 << 40
