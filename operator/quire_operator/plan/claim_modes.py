"""Whether the pods that a service has at one time can all have the cache's claim, and whether it is as asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quire_operator.api import Advice, Spec
from quire_operator.api.quantity import parse_quantity
from quire_operator.plan.acceptance import Refusal

ONE_POD = "ReadWriteOncePod"
_SHARED = ("ReadWriteMany", "ReadOnlyMany")
_HOSTNAME = "kubernetes.io/hostname"


@dataclass(frozen=True)
class ClaimFacts:
    """What a service has to know of the claim that it names or makes."""

    name: str
    access_modes: Sequence[str] = ()
    exists: bool = True
    size: str | None = None
    """What it asks for by now, where that is known."""

    made: str | None = None
    """When it was created, where that is known."""

    @property
    def is_of_one_node(self) -> bool:
        """Pods of one node at a time may use it."""
        modes = self.access_modes
        return "ReadWriteOnce" in modes and not any(mode in _SHARED for mode in modes)


def one_pod_only(spec: Spec, claim: ClaimFacts, replicas: int) -> Refusal | None:
    """Why a claim that one pod at a time may use is none for this service."""
    if ONE_POD not in claim.access_modes:
        return None
    asks = []
    if _most_replicas(spec, replicas) > 1:
        asks.append("more than one replica (write 1)")
    if _surges(spec):
        asks.append("a new pod before the old one goes (write rollout: {strategy: Recreate})")
    if spec.cache is not None and spec.cache.prefetch:
        asks.append("a Job that downloads while pods serve (write cache.prefetch: false)")
    if not asks:
        return None
    text = f"claim {claim.name} is {ONE_POD}, for one pod at a time, and the spec has {'; '.join(asks)}"
    return Refusal("ClaimNotShared", f"{text}. Or take a claim that is ReadWriteMany")


def one_node_only(spec: Spec, claim: ClaimFacts, replicas: int) -> Advice | None:
    """What to know of a claim that pods of one node alone can have, when there may be several of them."""
    if not claim.is_of_one_node:
        return None
    if _HOSTNAME in spec.scheduling.node_selector or not (_most_replicas(spec, replicas) > 1 or _surges(spec)):
        return None
    text = (
        f"claim {claim.name} is ReadWriteOnce: pods that use it at the same time, a rollout's among them, have to be "
        "on one node, and wait for ever on another. Take one that is ReadWriteMany, keep pods together by "
        f"spec.scheduling.nodeSelector ({_HOSTNAME}), or have one pod at a time: replicas: 1 and rollout: "
        "{strategy: Recreate}"
    )
    return Advice(reason="ClaimNotShared", message=text)


def larger_than_asked(spec: Spec, claim: ClaimFacts) -> Advice | None:
    """What to know of a claim that stays as large as it is."""
    volume = spec.cache.volume if spec.cache is not None else None
    if volume is None or claim.size is None or parse_quantity(claim.size) <= parse_quantity(volume.size):
        return None
    text = (
        f"spec.cache.volume.size is {volume.size}, and claim {claim.name} asks for {claim.size}: no claim can be made "
        f"smaller. Write {claim.size}, or make a smaller one and name it in spec.cache.claimName"
    )
    return Advice(reason="ClaimLarger", message=text)


def _most_replicas(spec: Spec, replicas: int) -> int:
    if spec.autoscaling is not None:
        return spec.autoscaling.max_replicas
    return replicas if spec.replicas is None else spec.replicas


def _surges(spec: Spec) -> bool:
    return spec.rollout.strategy == "RollingUpdate" and str(spec.rollout.max_surge) not in ("0", "0%")
