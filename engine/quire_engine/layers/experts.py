"""The experts of a mixture: many gated MLPs, each of which computes the tokens that are sent to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import nn

from quire_engine.distributed.ranks import TensorRanks, build_for, tensor_ranks
from quire_engine.kernels.choice import by_gpu_kernels
from quire_engine.layers.activation import gated
from quire_engine.layers.linear import ColumnLinear, Linear, LinearMethod, RowLinear, Rows, Unquantized
from quire_engine.layers.shard import Shard

if TYPE_CHECKING:
    from quire_engine.kernels.gpu.experts import ExpertWeight


@runtime_checkable
class Joining(Protocol):
    """A `LinearMethod` by whose weights a kernel for GPUs can multiply at once, where they are of experts."""

    def put_together(self, layers: Sequence[Linear]) -> ExpertWeight | None:
        """The weights of layers of one kind, the first of them this method's own, in their final form.

        Their parameters become parts of it. None where such weights have to go one by one.
        """
        ...


def stacked(layers: Sequence[Linear], name: str) -> torch.Tensor:
    """The parameters of this name as one tensor [num_layers, ...], of which each is a part from now on."""
    own = layers[0].get_parameter(name)
    whole = torch.empty(len(layers), *own.shape, dtype=own.dtype, device=own.device)
    for part, layer in zip(whole, layers, strict=True):
        part.copy_(layer.get_parameter(name))
        layer.register_parameter(name, nn.Parameter(part, requires_grad=False))
    return whole


class Stack(nn.Module):
    """The weights of one kind of all experts, [num_experts, out_features, in_features].

    Plain ones are a single allocation, so that a kernel can take all experts at once. Quantized ones are brought
    together where there is such a kernel, once they have their final form.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.taken = 0
        self.weight: nn.Parameter | None = None
        self._quantized: ExpertWeight | None = None

    @property
    def whole(self) -> ExpertWeight | None:
        """What a kernel multiplies by; None where experts go one by one."""
        return self.weight if self.taken == self.count else self._quantized

    def put_together(self, layers: Sequence[Linear]) -> None:
        """Those of all experts, where a kernel for GPUs takes such weights."""
        methods = [layer.method for layer in layers]
        if isinstance(methods[0], Joining) and len({type(method) for method in methods}) == 1:
            self._quantized = methods[0].put_together(layers)

    def take(self, index: int, rows: int, columns: int) -> torch.Tensor:
        """One expert's weight [rows, columns] within the stack."""
        if self.weight is None:
            self.weight = nn.Parameter(torch.empty(self.count, rows, columns), requires_grad=False)
        self.taken += 1
        return self.weight.detach()[index]

    def shards(self, path: str) -> dict[str, Shard]:
        return {}  # the experts fill it


class _ExpertColumns(ColumnLinear):
    takes_batch = False

    def __init__(self, stack: Stack, index: int, in_features: int, parts: Mapping[str, Rows]) -> None:
        super().__init__(in_features, parts)
        self._take = lambda: stack.take(index, self.out_features, self.in_features)

    def create(self, method: LinearMethod) -> None:
        _create(self, method, self._take, super().create)


class _ExpertRows(RowLinear):
    takes_batch = False

    def __init__(self, stack: Stack, index: int, columns: Rows, out_features: int) -> None:
        super().__init__(columns, out_features)
        self._take = lambda: stack.take(index, self.out_features, self.in_features)

    def create(self, method: LinearMethod) -> None:
        _create(self, method, self._take, super().create)


def _create(
    layer: _ExpertColumns | _ExpertRows,
    method: LinearMethod,
    take: Callable[[], torch.Tensor],
    otherwise: Callable[[LinearMethod], None],
) -> None:
    """A plain weight has its place in the stack; a quantized one is as its method makes it."""
    if type(method) is Unquantized:
        layer.method, layer.weight = method, take()
    else:
        otherwise(method)


class Expert(nn.Module):
    """down(act(gate(x)) * up(x)), without the sum over ranks."""

    def __init__(self, index: int, hidden_size: int, inner: Rows, gate_up: Stack, down: Stack) -> None:
        super().__init__()
        self.gate_up_proj = _ExpertColumns(gate_up, index, hidden_size, {"gate_proj": inner, "up_proj": inner})
        self.down_proj = _ExpertRows(down, index, inner, hidden_size)


class Experts(nn.Module):
    """Experts of one size. Ranks share each of them, or, with `TensorRanks.expert_parallel`, hold some whole."""

    def __init__(
        self, num_experts: int, hidden_size: int, inner_size: int, activation: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        super().__init__()
        ranks = tensor_ranks()
        self.activation = activation
        self.own = range(num_experts)
        if ranks.expert_parallel and ranks.size > 1:
            if num_experts % ranks.size:
                raise ValueError(f"--enable-expert-parallel: {num_experts} experts do not divide by {ranks.size} ranks")
            self.own = self.own[ranks.share(num_experts)]
            ranks = TensorRanks()
        self.num_experts = num_experts
        self.gate_up, self.down = Stack(len(self.own)), Stack(len(self.own))
        with build_for(ranks):
            for place, expert in enumerate(self.own):
                self.add_module(str(expert), Expert(place, hidden_size, Rows(inner_size), self.gate_up, self.down))
        self._experts = {expert: self.get_submodule(str(expert)) for expert in self.own}

    @property
    def in_one_product(self) -> bool:
        """Whether a kernel can multiply by all of them at once, without knowing which are chosen."""
        return self.gate_up.whole is not None and self.down.whole is not None

    def finish(self) -> None:
        """Bring quantized weights together for a kernel, if there is one."""
        experts = [expert for expert in self._experts.values() if isinstance(expert, Expert)]
        if by_gpu_kernels(next(self.parameters()).device):
            self.gate_up.put_together([expert.gate_up_proj for expert in experts])
            self.down.put_together([expert.down_proj for expert in experts])

    def forward(self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """This rank's part of the sum over experts.

        x [num_tokens, hidden_size], weights and chosen experts [num_tokens, top_k] -> [num_tokens, hidden_size].
        """
        if self.in_one_product and by_gpu_kernels(x.device):
            return self._at_once(x, weights, chosen)
        num_tokens, top_k = chosen.shape
        order = chosen.flatten().argsort(stable=True)
        ends = torch.bincount(chosen.flatten(), minlength=self.num_experts).cumsum(0).tolist()
        rows = x[order // top_k]
        out = torch.zeros_like(rows) if len(self.own) < self.num_experts else torch.empty_like(rows)
        for index in self.own:
            first, last = ends[index - 1] if index else 0, ends[index]
            if first < last:
                out[first:last] = self._run(self._experts[index], rows[first:last])
        # Back in the tokens' order, and summed in the order of the choice: the same whatever else is in the batch.
        slots = torch.empty_like(out)
        slots[order] = out
        return torch.bmm(weights.to(x.dtype)[:, None], slots.view(num_tokens, top_k, -1))[:, 0]

    def _at_once(self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """As `forward`, with one product for all experts."""
        from quire_engine.kernels.gpu.experts import multiply, route

        gate_up, down = self.gate_up.whole, self.down.whole
        assert gate_up is not None
        assert down is not None
        routes = route(chosen - self.own.start, len(self.own))
        inner = gated(multiply(x, gate_up, routes, of_tokens=True), self.activation)
        out = multiply(inner, down, routes, of_tokens=False)
        return torch.bmm(weights.to(x.dtype)[:, None], out.view(*chosen.shape, -1))[:, 0]

    def _run(self, expert: nn.Module, x: torch.Tensor) -> torch.Tensor:
        assert isinstance(expert, Expert)
        return expert.down_proj.partial(gated(expert.gate_up_proj(x), self.activation))
