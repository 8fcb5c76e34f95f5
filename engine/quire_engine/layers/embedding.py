"""Token embeddings and the output head, which may be one. Ranks share the vocabulary."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from quire_engine.distributed.ranks import tensor_ranks
from quire_engine.kernels.cpu import linear
from quire_engine.layers.shard import Shard


class Embedding(nn.Module):
    """One row of `weight` a token, and one column of the logits. Each rank holds an equal part, the last one padded."""

    def __init__(self, vocab_size: int, hidden_size: int, *, bias: bool = False) -> None:
        super().__init__()
        self.ranks = tensor_ranks()
        self.vocab_size = vocab_size
        each = -(-vocab_size // self.ranks.size)
        self.first = min(self.ranks.rank * each, vocab_size)
        self.count = min(each, vocab_size - self.first)
        # Zeros: the padding must give finite logits, which are cut off.
        self.weight = nn.Parameter(torch.zeros(each, hidden_size), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(each), requires_grad=False) if bias else None

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """[num_tokens] int64 -> [num_tokens, hidden_size]."""
        if self.ranks.size == 1:
            return functional.embedding(token_ids, self.weight)
        own = token_ids - self.first
        others = (own < 0) | (own >= self.count)
        rows = functional.embedding(own.masked_fill(others, 0), self.weight)
        return self.ranks.all_reduce(rows.masked_fill(others[:, None], 0.0))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, hidden_size] -> [rows, vocab_size], whole on every rank."""
        own = linear(hidden, self.weight, self.bias)
        return self.ranks.all_gather(own)[..., : self.vocab_size]

    def shards(self, path: str) -> dict[str, Shard]:
        rows = slice(self.first, self.first + self.count)
        result = {f"{path}.weight": Shard(self.weight[: self.count], (self.vocab_size, self.weight.shape[1]), rows)}
        if self.bias is not None:
            result[f"{path}.bias"] = Shard(self.bias[: self.count], (self.vocab_size,), rows)
        return result


class PositionTable(nn.Module):
    """One row of `weight` [num_positions, hidden_size] a position, whole on every rank."""

    def __init__(self, num_positions: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_positions, hidden_size), requires_grad=False)

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        """[num_tokens] int64 -> [num_tokens, hidden_size]."""
        return functional.embedding(positions, self.weight)
