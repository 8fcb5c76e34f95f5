"""A small LLaVA, or LLaVA-NeXT, with a tokenizer, an image processor and a chat template, and images to show it."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tests.engine.models.checkpoints import ALL, make_model

CASES = tuple(name for name in ALL if name.startswith("LlavaForConditionalGeneration"))
TILED = tuple(name for name in ALL if name.startswith("LlavaNextForConditionalGeneration"))
IMAGE = "<image>"
TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


@dataclass
class Llava:
    """The model as transformers has it, and where its files are."""

    directory: Path
    model: Any
    processor: Any

    def answer(self, prompt: str, images: list[Image.Image], count: int) -> list[int]:
        """Greedy, in float32."""
        more: dict[str, Any] = {"images": images} if images else {}
        inputs = self.processor(text=prompt, return_tensors="pt", **more)
        out = self.model.generate(**inputs, max_new_tokens=count, do_sample=False)
        return list(out[0, inputs["input_ids"].shape[1] :].tolist())

    def ids(self, text: str) -> list[int]:
        return list(self.processor.tokenizer.encode(text))


def make_llava(directory: Path, case: str = CASES[0]) -> Llava:
    """One token a character; the image token has id 96."""
    cls, config = ALL[case]
    model: PreTrainedModel = make_model(cls, config(), seed=3)
    model.save_pretrained(directory)
    settings: Any = model.config
    vocabulary = {chr(32 + i): i for i in range(95)} | {"\n": 95}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=" "))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    make_tokenizer: Any = PreTrainedTokenizerFast
    tiled = case in TILED
    make_processor: Any = LlavaNextProcessor if tiled else LlavaProcessor
    make_image_processor: Any = LlavaNextImageProcessorPil if tiled else CLIPImageProcessorPil
    grids = {"image_grid_pinpoints": settings.image_grid_pinpoints} if tiled else {}
    tokenizer = make_tokenizer(tokenizer_object=backend, chat_template=TEMPLATE)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    assert tokenizer.convert_tokens_to_ids(IMAGE) == settings.image_token_index
    size = settings.vision_config.image_size
    processor = make_processor(
        make_image_processor(size={"shortest_edge": size}, crop_size={"height": size, "width": size}, **grids),
        tokenizer,
        patch_size=settings.vision_config.patch_size,
        vision_feature_select_strategy=settings.vision_feature_select_strategy,
        num_additional_image_tokens=1,
    )
    processor.save_pretrained(directory)
    return Llava(directory, model, processor)


def picture(seed: int, width: int = 40, height: int = 28) -> Image.Image:
    """Noise, which is the same for the same seed."""
    pixels = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed))
    return Image.frombytes("RGB", (width, height), bytes(pixels.flatten().tolist()))


def file_of(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()
