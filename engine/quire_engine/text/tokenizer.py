"""Tokenizers by transformers, without torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(
    path: str, *, revision: str | None = None, trust_remote_code: bool = False, download_dir: str | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer in the directory `path`, or of that name on the hub.

    Imports no torch. A process that wants both imports torch first: transformers looks for it only once.
    Raises `ValueError` when there is no tokenizer that can be loaded.
    """
    if path.startswith((".", "/")) and not os.path.isdir(path):  # transformers would take it for a name on the hub
        raise ValueError(f"the directory {path} does not exist: check --tokenizer")
    with _torch_hidden():
        from transformers import AutoTokenizer
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path, revision=revision, trust_remote_code=trust_remote_code, cache_dir=download_dir
        )
    except Exception as error:  # tokenizers raises plain ones, and a tokenizer's own code what it likes
        lines = str(error).strip().splitlines() or [type(error).__name__]
        why = lines[0].rstrip(" .:")
        raise ValueError(f"the tokenizer of {path} cannot be loaded: {why}. Name one with --tokenizer") from error
    tokenizer.model_max_length = sys.maxsize  # how long a prompt may be is ours to say; it would log what is not so
    return tokenizer


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int, path: str) -> None:
    """Raise `ValueError` where the tokenizer of `path` is none, or knows tokens that the model does not.

    Those that were added to its vocabulary may be beyond the model's: some models leave a few of them out.
    """
    own = tokenizer.vocab_size
    if len(tokenizer) == 0:
        raise ValueError(f"the tokenizer of {path} has no tokens: a file of it is missing. Name one with --tokenizer")
    if own > vocab_size:
        raise ValueError(
            f"the tokenizer of {path} has {own} tokens and the model {vocab_size}: they do not belong together. "
            "Name the model's with --tokenizer"
        )


@contextmanager
def _torch_hidden() -> Iterator[None]:
    """Let transformers, where it is imported for the first time, find no torch: it takes seconds and 300 MB."""
    if "torch" in sys.modules or "transformers" in sys.modules:
        yield
        return
    # None is how the import system is told that a module is not there; typeshed knows only modules.
    sys.modules["torch"] = None  # type: ignore[assignment]
    # It would warn that models are not available.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        # imported for what it does: both look for torch now, and remember that there is none
        import transformers  # noqa: F401
        from transformers import AutoTokenizer, PreTrainedTokenizerFast  # noqa: F401

        yield
    finally:
        del sys.modules["torch"]
