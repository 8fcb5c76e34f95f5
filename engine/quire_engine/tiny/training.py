"""Train the tiny model. The same seed gives the same file on the same processor, thread count and versions."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import math
import os
import platform
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from quire_engine.tiny.corpus import Exchange, exchanges

log = logging.getLogger(__name__)

BOS, EOS, USER, ASSISTANT, SYSTEM = "<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>", "<|system|>"
SPECIAL_TOKENS = (BOS, EOS, USER, ASSISTANT, SYSTEM)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] | trim }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True)
class Recipe:
    """What the tiny model is made of. About 2.4 million parameters."""

    seed: int = 0
    vocab_size: int = 2048
    hidden_size: int = 192
    num_layers: int = 4
    num_heads: int = 6
    num_kv_heads: int = 2
    intermediate_size: int = 512
    max_position_embeddings: int = 2048
    steps: int = 400
    batch_size: int = 8  # rows of `row_length` tokens
    row_length: int = 192
    learning_rate: float = 4e-3
    warmup_steps: int = 40
    cpu_seconds_at_most: float = 180.0


def tiny_model(directory: Path, recipe: Recipe | None = None) -> None:
    """Put a tiny model into `directory`, trained now or taken from the cache.

    Raises `FileExistsError` when the directory holds something else.
    """
    recipe = recipe or Recipe()
    if directory.exists() and any(directory.iterdir()) and not (directory / "quire-tiny.json").exists():
        raise FileExistsError(f"{directory} is not empty and holds no tiny model: name an empty or a new directory")
    cached = _cache_folder(recipe)
    with cached.with_suffix(".lock").open("w") as lock:  # who comes second waits, and finds it done
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not cached.exists():
            partial = cached.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            _train(recipe, partial)
            partial.rename(cached)
    directory.mkdir(parents=True, exist_ok=True)
    for file in cached.iterdir():
        shutil.copyfile(file, directory / file.name)


def _cache_folder(recipe: Recipe) -> Path:
    root = Path(os.environ.get("QUIRE_CACHE") or Path.home() / ".cache" / "quire")
    sources = b"".join(p.read_bytes() for p in sorted(Path(__file__).parent.glob("*.py")))
    key = f"{recipe} {platform.python_version()} {torch.__version__}".encode() + sources
    folder = root / "tiny" / hashlib.sha256(key).hexdigest()[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder


def _train(recipe: Recipe, directory: Path) -> None:
    log.info("training the tiny model, up to %.0f s; it is kept for the next time", recipe.cpu_seconds_at_most)
    torch.manual_seed(recipe.seed)
    # With two threads, one that waits for the other spins: on a busy machine that is several times slower than one.
    torch.set_num_threads(1)
    corpus = exchanges()
    tokenizer = _train_tokenizer(recipe, corpus)
    rows = _rows(recipe, corpus, tokenizer)
    model = LlamaForCausalLM(_config(recipe, tokenizer))
    _optimise(recipe, model, rows)
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    (directory / "quire-tiny.json").write_text(_card(recipe))


def _card(recipe: Recipe) -> str:
    return json.dumps({"made_by": "quire-engine tiny", "recipe": asdict(recipe)}, indent=2) + "\n"


def _train_tokenizer(recipe: Recipe, corpus: list[Exchange]) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((f"{e.question} {e.answer}" for e in corpus), trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # it has no types
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        extra_special_tokens=[USER, ASSISTANT, SYSTEM],
        chat_template=CHAT_TEMPLATE,
        model_max_length=recipe.max_position_embeddings,
        clean_up_tokenization_spaces=False,
    )


def _rows(recipe: Recipe, corpus: list[Exchange], tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """The shuffled exchanges end to end, cut into rows: [num_rows, row_length + 1] int64."""
    order = torch.randperm(len(corpus), generator=torch.Generator().manual_seed(recipe.seed)).tolist()
    texts = [f"{BOS}{USER}{corpus[i].question}{ASSISTANT}{corpus[i].answer}{EOS}" for i in order]
    ids = [i for encoded in tokenizer(texts, add_special_tokens=False)["input_ids"] for i in encoded]
    length = recipe.row_length + 1
    return torch.tensor(ids[: len(ids) // length * length]).view(-1, length)


def _config(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_kv_heads,
        intermediate_size=recipe.intermediate_size,
        max_position_embeddings=recipe.max_position_embeddings,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
        dtype="float32",
    )


def _optimise(recipe: Recipe, model: LlamaForCausalLM, rows: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(recipe.seed + 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.05)
    model.train()
    started, cpu_started = time.monotonic(), time.thread_time()
    for step in range(recipe.steps):
        fraction = _learning_rate_fraction(step, recipe)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * fraction
        batch = rows[torch.randint(len(rows), (recipe.batch_size,), generator=generator)]
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # it has no types
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == recipe.steps - 1:
            elapsed = time.monotonic() - started
            log.info("step %d of %d, loss %.2f, %.0f s", step + 1, recipe.steps, loss.item(), elapsed)
        # Processor time and not the clock's: a busy machine is late, yet makes the same file.
        if time.thread_time() - cpu_started > recipe.cpu_seconds_at_most:
            log.warning("stopped at step %d: this processor is slow, and its file is one of its own", step + 1)
            break
    model.eval()  # type: ignore[no-untyped-call]  # it has no types


def _learning_rate_fraction(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine down to a tenth."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * progress))
