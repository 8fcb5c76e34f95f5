"""A small Qwen2-VL with a tokenizer, an image processor and a chat template."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen2VLImageProcessorPil

from tests.engine.models.checkpoints import ALL, make_model

IMAGE = "<|image_pad|>"
IMAGE_ID = 96
CASES = tuple(name for name in ALL if name.startswith("Qwen2VLForConditionalGeneration"))
TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '>' }}"
    "{% for part in message['content'] %}"
    "{{ '<|image_pad|>' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endfor %}"
)


@dataclass
class Qwen2:
    """The model as transformers has it, and where its files are."""

    directory: Path
    model: Any
    processor: Any
    tokenizer: Any

    def inputs(self, prompt: str, images: list[Image.Image]) -> dict[str, torch.Tensor]:
        """What the model is called with: each image token as often as its grid has squares."""
        made: dict[str, Any] = dict(self.processor(images, return_tensors="pt")) if images else {}
        counts = iter((made["image_grid_thw"].prod(-1) // 4).tolist() if images else [])
        ids: list[int] = []
        for token in self.tokenizer.encode(prompt):
            ids += [token] * (next(counts) if token == IMAGE_ID else 1)
        tensor = torch.tensor([ids])
        kinds = {"mm_token_type_ids": (tensor == IMAGE_ID).int()} if images else {}
        return made | kinds | {"input_ids": tensor, "attention_mask": torch.ones_like(tensor)}

    def answer(self, prompt: str, images: list[Image.Image], count: int) -> list[int]:
        """Greedy, in float32."""
        inputs = self.inputs(prompt, images)
        out = self.model.generate(**inputs, max_new_tokens=count, do_sample=False, bad_words_ids=[[IMAGE_ID]])
        return list(out[0, inputs["input_ids"].shape[1] :].tolist())


def make_qwen2(directory: Path, case: str = CASES[0]) -> Qwen2:
    """One token a character; the image token has id 96. Images are of 4 to 36 squares of 8 pixels."""
    cls, config = ALL[case]
    model: PreTrainedModel = make_model(cls, config(), seed=3)
    model.save_pretrained(directory)
    vocabulary = {chr(32 + i): i for i in range(95)} | {"\n": 95}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=" "))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    make_tokenizer: Any = PreTrainedTokenizerFast
    tokenizer = make_tokenizer(tokenizer_object=backend, chat_template=TEMPLATE)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    assert tokenizer.convert_tokens_to_ids(IMAGE) == IMAGE_ID
    tokenizer.save_pretrained(directory)
    make_processor: Any = Qwen2VLImageProcessorPil
    processor = make_processor(patch_size=4, merge_size=2, size={"shortest_edge": 256, "longest_edge": 2304})
    processor.save_pretrained(directory)
    return Qwen2(directory, model, processor, tokenizer)
