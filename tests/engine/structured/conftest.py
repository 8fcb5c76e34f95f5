"""A small random model, whose every token is a surprise, with a byte-level tokenizer of fewer tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from quire_engine import LLM
from tests.engine.models.checkpoints import make_model, save

TOKENIZER_SIZE = 400
VOCAB_SIZE = 448  # padded, and no multiple of 32 beside it
EOS = "<eos>"


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte, and what JSON is made of in pieces that cross its parts."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENIZER_SIZE,
        special_tokens=[EOS, "<tool>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    values = [{"name": "Ada", "tags": ["a", "b"], "age": n, "ok": n % 2 == 0, "none": None} for n in range(200)]
    bpe.train_from_iterator([json.dumps(v, indent=n % 3 or None) for n, v in enumerate(values)], trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # it has no types
        tokenizer_object=bpe, eos_token=EOS, clean_up_tokenization_spaces=False
    )


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("random")
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=None,
    )
    save(make_model(LlamaForCausalLM, config), directory)
    byte_level_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def llm(random_model: Path) -> LLM:
    return LLM(str(random_model), device="cpu", block_size=8, num_gpu_blocks_override=1000)
