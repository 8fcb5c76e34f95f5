"""The pods of a group, which serve one replica together: what tells them apart, and which of them leads."""

from __future__ import annotations

from quire_operator.api import LLMService

RANK = "$(LWS_WORKER_INDEX)"
"""Number of the pod in its group, 0 for the leader. LeaderWorkerSet sets the variable, the kubelet fills it in."""

LEADER_ADDRESS = "$(LWS_LEADER_ADDRESS)"
"""Host name of the leader."""


def group_flags(service: LLMService) -> list[str]:
    """Flags of each pod of a group, under vLLM's names; none where one pod is a whole replica."""
    nodes = service.spec.parallelism.nodes
    return [f"--nnodes={nodes}", f"--node-rank={RANK}", f"--master-addr={LEADER_ADDRESS}"] if nodes > 1 else []


def group_variables(service: LLMService) -> dict[str, str]:
    """The same for an engine that is told in its environment."""
    nodes = service.spec.parallelism.nodes
    return {"NODES": str(nodes), "NODE_RANK": RANK, "LEADER_ADDRESS": LEADER_ADDRESS} if nodes > 1 else {}
