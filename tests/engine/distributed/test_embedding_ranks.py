"""Ranks together make the vectors that transformers makes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from quire_engine.core.pooling import PoolingParams
from quire_engine.request_embedding import embed_all
from tests.engine.distributed.rank_pool import RankPool
from tests.engine.distributed.test_answers import PROMPTS, engine
from tests.engine.models.checkpoints import ENCODERS, make_model, save
from tests.engine.models.test_embeddings import headless, reference, write_modules

pytestmark = pytest.mark.usefixtures("one_thread")

LAYOUTS = {"TP 2": (2, 1), "PP 2": (1, 2)}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["BertModel: learned positions, token types", "LlamaModel"])
def test_ranks_make_the_vectors_of_transformers(ranks: RankPool, name: str, layout: str, tmp_path: Path) -> None:
    if name in ENCODERS:
        cls, config = ENCODERS[name]
        model = make_model(cls, config())
    else:
        model = headless(name)
    save(model, tmp_path)
    write_modules(tmp_path, "mean_tokens", normalize=True)
    with engine(tmp_path, *LAYOUTS[layout], num_gpu_blocks_override=None, kv_cache_memory_bytes=1 << 20) as core:
        found = embed_all(core, PROMPTS, [PoolingParams()] * len(PROMPTS), 0, False)
        core.check_integrity()
    wanted = torch.stack([reference(model, prompt, "mean_tokens") for prompt in PROMPTS])
    torch.testing.assert_close(torch.tensor([f.outputs.embedding for f in found]), wanted, atol=1e-5, rtol=0)
