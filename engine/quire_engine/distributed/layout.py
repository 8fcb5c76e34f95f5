"""Who computes what: ranks over nodes, stages and shares of layers. Plain numbers, no torch."""

from __future__ import annotations

from dataclasses import dataclass

from quire_engine.config import EngineConfig
from quire_engine.memory_plan.stages import Stage


@dataclass(frozen=True)
class Layout:
    """`tensor` ranks share each layer of a stage, there are `pipeline` stages, and each node has as many ranks.

    Ranks count from the last stage to the first: rank 0, which schedules, is where tokens are sampled.
    """

    tensor: int = 1
    pipeline: int = 1
    nodes: int = 1
    expert_parallel: bool = False  # the ranks of a stage hold whole experts each

    @staticmethod
    def of(config: EngineConfig) -> Layout:
        return Layout(
            config.tensor_parallel_size, config.pipeline_parallel_size, config.nnodes, config.enable_expert_parallel
        )

    @property
    def size(self) -> int:
        return self.tensor * self.pipeline

    @property
    def per_node(self) -> int:
        return self.size // self.nodes

    def stage(self, rank: int) -> Stage:
        return Stage(self.pipeline - 1 - rank // self.tensor, self.pipeline)

    def ranks_of_stage(self, index: int) -> range:
        """The ranks that share the layers of a stage, in the order of their shares."""
        first = (self.pipeline - 1 - index) * self.tensor
        return range(first, first + self.tensor)

    def node(self, rank: int) -> int:
        return rank // self.per_node

    def local_rank(self, rank: int) -> int:
        """Its number on its node: that of its GPU."""
        return rank % self.per_node

    def ranks_of_node(self, node: int) -> range:
        return range(node * self.per_node, (node + 1) * self.per_node)
