"""The models that engines are measured with: Llamas with weights drawn at random, and a tokenizer."""

from __future__ import annotations

import itertools
import os
import shutil
import string
from pathlib import Path
from typing import Any

from e2e.cluster.locations import cache

VOCAB_SIZE = 32_000
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "intermediate_size": 2816,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
LARGER: dict[str, Any] = SHAPE | {
    "hidden_size": 2048,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "intermediate_size": 5632,
    "tie_word_embeddings": False,
}
"""TinyLlama's."""
SHAPES = {"303m": SHAPE, "1.1b": LARGER}


def checkpoint(size: str = "303m") -> Path:
    """The directory of the checkpoint in bfloat16, of a size in `SHAPES`, made the first time and kept in the cache."""
    directory = cache() / "bench" / f"llama-{size}"
    if not directory.is_dir():
        unfinished = directory.with_name(f"{directory.name}.{os.getpid()}")
        _write(unfinished, SHAPES[size])
        try:
            unfinished.rename(directory)
        except OSError:  # another run was faster
            shutil.rmtree(unfinished)
    return directory


def weight_bytes(directory: Path, size: str = "303m") -> int:
    """Bytes of the weights that a decode step reads: of an embedding that is not the head it reads a row."""
    shape, stored = SHAPES[size], sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    return stored - (0 if shape["tie_word_embeddings"] else 2 * VOCAB_SIZE * int(shape["hidden_size"]))


def _write(directory: Path, shape: dict[str, Any]) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig(**shape, bos_token_id=None, eos_token_id=0, dtype="bfloat16"))
    model.to(torch.bfloat16).save_pretrained(directory)
    _tokenizer().save_pretrained(directory)


def _tokenizer() -> Any:
    """A byte-level BPE whose tokens are words of up to four letters, each with the space before it.

    Random tokens are then the tokens of their own text, so that prompts are as long as asked.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens, merges = ["</s>", *alphabet], []
    for length in range(4):
        for letters in itertools.product(string.ascii_lowercase, repeat=length + 1):
            if len(tokens) == VOCAB_SIZE:
                break
            stem, last = "Ġ" + "".join(letters[:-1]), letters[-1]
            tokens.append(stem + last)
            merges.append((stem, last))
    whole = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole.decoder = decoders.ByteLevel()
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=whole, eos_token="</s>", clean_up_tokenization_spaces=False)
