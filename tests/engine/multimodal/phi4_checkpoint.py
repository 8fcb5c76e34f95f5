"""A small Phi-4-multimodal with a tokenizer, an image processor and a chat template."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import Phi4MultimodalImageProcessor, PreTrainedModel, PreTrainedTokenizerFast

from tests.engine.models.checkpoints import ALL, make_model

IMAGE = "<|image|>"
IMAGE_ID = 96
CASE = "Phi4MultimodalForCausalLM: images"
LONGEST = 4096
ADAPTED = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '>' }}"
    "{% for part in message['content'] %}"
    "{{ '<|image|>' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endfor %}"
)


@dataclass
class Phi4:
    """The model as transformers has it, and where its files are."""

    directory: Path
    model: Any
    model_of_images: Any  # the same with the adapter merged, where there is one
    processor: Any
    tokenizer: Any

    def inputs(self, prompt: str, images: list[Image.Image]) -> dict[str, torch.Tensor]:
        """What the model is called with: each image token as often as the image processor says."""
        made: dict[str, Any] = dict(self.processor(images, return_tensors="pt")) if images else {}
        counts = iter(made.pop("num_img_tokens", torch.zeros(0)).tolist())
        ids: list[int] = []
        for token in self.tokenizer.encode(prompt):
            ids += [token] * (int(next(counts)) if token == IMAGE_ID else 1)
        tensor = torch.tensor([ids])
        return made | {"input_ids": tensor, "attention_mask": torch.ones_like(tensor)}

    def answer(self, prompt: str, images: list[Image.Image], count: int) -> list[int]:
        """Greedy, in float32."""
        inputs = self.inputs(prompt, images)
        model = self.model_of_images if images else self.model
        out = model.generate(**inputs, max_new_tokens=count, do_sample=False, bad_words_ids=[[IMAGE_ID]])
        return list(out[0, inputs["input_ids"].shape[1] :].tolist())


def make_phi4(directory: Path, *, adapted: bool = True) -> Phi4:
    """One token a character; the image token has id 96. Images are cut into at most 6 crops of 64 pixels."""
    cls, config = ALL[CASE]
    settings = config()
    settings.max_position_embeddings = settings.original_max_position_embeddings = LONGEST
    model: PreTrainedModel = make_model(cls, settings, seed=3)
    # Its encoder's patches see each other. With sdpa they see only those before them, where an image fills its crops.
    model.set_attn_implementation("eager")
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
    make_processor: Any = Phi4MultimodalImageProcessor
    processor = make_processor(size={"height": 64, "width": 64}, patch_size=2, dynamic_hd=6)
    processor.save_pretrained(directory)
    return Phi4(directory, model, add_adapter(directory, model) if adapted else model, processor, tokenizer)


def add_adapter(directory: Path, model: Any, rank: int = 6, alpha: float = 4.0) -> Any:
    """Write an adapter for prompts with images, as peft does, and return the model with it merged."""
    generator = torch.Generator().manual_seed(5)
    merged = copy.deepcopy(model)
    tensors = {}
    for name, module in merged.named_modules():
        if name.startswith("model.layers.") and name.endswith(ADAPTED):
            down = torch.randn(rank, module.in_features, generator=generator) * 0.2
            up = torch.randn(module.out_features, rank, generator=generator) * 0.2
            tensors |= {f"base_model.model.{name}.lora_{part}.weight": t for part, t in (("A", down), ("B", up))}
            module.weight.data += alpha / rank * up @ down
    folder = directory / "vision-lora"
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": list(ADAPTED), "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return merged
