"""One rank among all of them: its share of the model, and the ways to the others."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from torch import distributed
from torch._C._distributed_c10d import PrefixStore, Store

from quire_engine.distributed.layout import Layout
from quire_engine.distributed.one_shot import one_shot_for
from quire_engine.distributed.ranks import TensorRanks
from quire_engine.memory_plan.stages import Stage

# A rank waits so long for one that still loads. One that has died is told of by others.
_PATIENCE = timedelta(hours=1)
_MEETING = timedelta(minutes=1)  # of ranks that are all there
_GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
_SIOCGIFADDR = 0x8915


class StageLink:
    """Takes hidden states from the stage before this one to the one after it."""

    def __init__(self, before: int | None, after: int | None, in_flight: int) -> None:
        self._before, self._after = before, after
        self._in_flight = in_flight
        self._sent: deque[tuple[Any, torch.Tensor]] = deque()

    def receive(self, num_tokens: int, hidden_size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """The hidden states of a step, [num_tokens, hidden_size], from the stage before: waits for them."""
        hidden = torch.empty(num_tokens, hidden_size, dtype=dtype, device=device)
        distributed.recv(hidden, self._before)
        return hidden

    def send(self, hidden: torch.Tensor) -> None:
        """Hand on a step's hidden states. Returns before they have arrived, unless many are on their way."""
        while len(self._sent) >= self._in_flight:
            self._sent.popleft()[0].wait()
        hidden = hidden.contiguous()
        self._sent.append((distributed.isend(hidden, self._after), hidden))


@dataclass(frozen=True)
class Place:
    """Where a rank stands. The default is the place of a process that has the whole model."""

    layout: Layout = field(default_factory=Layout)
    rank: int = 0
    tensor_ranks: TensorRanks = field(default_factory=TensorRanks)
    link: StageLink | None = None

    @property
    def stage(self) -> Stage:
        return self.layout.stage(self.rank)

    def least(self, value: int) -> int:
        """The smallest of all ranks' values: all of them have to ask."""
        if self.layout.size == 1:
            return value
        shared = torch.tensor(value)
        distributed.all_reduce(shared, distributed.ReduceOp.MIN)
        return int(shared)

    def leave(self) -> None:
        """Give up the ways to the others."""
        if self.layout.size > 1:
            distributed.destroy_process_group()


def join(
    store: Store, layout: Layout, rank: int, device: torch.device, address: str, *, one_shot: bool = True
) -> Place:
    """Meet the other ranks, which all have to call this. `address` is this rank's towards them.

    Collectives run over NCCL on GPUs, and over gloo on CPU. With `one_shot` GPUs add small tensors in one step, where
    they can.
    """
    with _gloo_towards(address):
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=PrefixStore("collectives", store),
            rank=rank,
            world_size=layout.size,
            timeout=_PATIENCE,
        )
        stage = layout.stage(rank)
        group: distributed.ProcessGroup | None = None
        for index in range(layout.pipeline):  # every rank has to take part in making every group
            made = distributed.new_group(list(layout.ranks_of_stage(index)), timeout=_PATIENCE)
            if index == stage.index and isinstance(made, distributed.ProcessGroup):
                group = made
    # The same share of the neighbouring stages.
    before = None if stage.first else rank + layout.tensor
    after = None if stage.last else rank - layout.tensor
    peers = layout.ranks_of_stage(stage.index)
    one_node = layout.node(peers[0]) == layout.node(peers[-1])
    gpus = range(layout.local_rank(peers[0]), layout.local_rank(peers[0]) + layout.tensor)
    store.set_timeout(_MEETING)
    added = one_shot_for(group, device, gpus, wanted=one_shot, one_node=one_node)
    # NCCL asks for its ids when ranks first have something for each other, and one may have kernels to compile first.
    store.set_timeout(_PATIENCE)
    share = TensorRanks(rank % layout.tensor, layout.tensor, group, layout.expert_parallel, added)
    return Place(layout, rank, share, StageLink(before, after, layout.pipeline))


@contextmanager
def _gloo_towards(address: str) -> Iterator[None]:
    """Have gloo, which takes any, use the interface of `address`, unless the user named one."""
    interface = _interface_of(address)
    if interface is None or _GLOO_INTERFACE in os.environ:
        yield
        return
    os.environ[_GLOO_INTERFACE] = interface
    try:
        yield
    finally:
        del os.environ[_GLOO_INTERFACE]  # processes that this one starts may talk to others


def address_towards(host: str) -> str:
    """This machine's address on the way to `host`. Raises `OSError` for a name that is not known, or no way there."""
    family, _, _, _, target = socket.getaddrinfo(host, 1, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(target)  # sends nothing
        return str(probe.getsockname()[0])


def in_url(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _interface_of(address: str) -> str | None:
    """The network interface that has this IPv4 address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return None
