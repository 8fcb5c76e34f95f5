"""Vectors of prompts: what `LLM.embed` returns, and the run that makes them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from tqdm import tqdm  # type: ignore[import-untyped]  # it ships no types

from quire_engine.core.loop import EngineCore
from quire_engine.core.messages import EngineRequest
from quire_engine.core.pooling import PoolingParams
from quire_engine.interrupts import interrupts_held
from quire_engine.sampling_params import SamplingParams


@dataclass
class EmbeddingOutput:
    """A prompt's vector."""

    embedding: list[float]

    @property
    def data(self) -> list[float]:
        """As `embedding`: what `LLM.encode` calls it in vLLM."""
        return self.embedding

    @property
    def hidden_size(self) -> int:
        return len(self.embedding)


@dataclass
class EmbeddingRequestOutput:
    """A prompt and its vector."""

    request_id: str
    outputs: EmbeddingOutput
    prompt_token_ids: list[int]
    finished: bool = True
    num_cached_tokens: int = 0


def embed_all(
    core: EngineCore,
    prompts: Sequence[list[int]],
    params: Sequence[PoolingParams],
    first_id: int,
    use_tqdm: bool,
    salts: Sequence[str | None] | None = None,
) -> list[EmbeddingRequestOutput]:
    """The vectors of `prompts`, in their order. Raises `ValueError` for one that can never run, and gives none then."""
    requests = [
        EngineRequest(str(first_id + i), ids, SamplingParams(), time.monotonic(), cache_salt=salt, pooling=own)
        for i, (ids, own, salt) in enumerate(zip(prompts, params, salts or [None] * len(prompts), strict=True))
    ]
    results: dict[str, EmbeddingRequestOutput] = {}
    with tqdm(total=len(requests), desc="prompts", disable=not use_tqdm) as bar:
        try:
            for request in requests:
                with interrupts_held():
                    core.add_request(request)
            while core.has_work():
                with interrupts_held():
                    outputs = core.step()
                for output in outputs:
                    if output.embedding is None:
                        raise ValueError(f"prompt {output.request_id}: {output.error}")
                    prompt = prompts[int(output.request_id) - first_id]
                    results[output.request_id] = EmbeddingRequestOutput(
                        output.request_id,
                        EmbeddingOutput(output.embedding),
                        prompt,
                        num_cached_tokens=output.num_cached_tokens,
                    )
                    bar.update()
        finally:
            with interrupts_held():
                core.abort([request.request_id for request in requests])
    return [results[request.request_id] for request in requests]
