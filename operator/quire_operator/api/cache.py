"""`spec.cache`: where downloaded weights are kept, so that they are downloaded once and not once per pod."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from quire_operator.api.fields import Fields
from quire_operator.api.names import ObjectName
from quire_operator.api.quantity import Quantity
from quire_operator.api.rule import Rule

AccessMode = Literal["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"]


def _shared() -> list[AccessMode]:
    return ["ReadWriteMany"]


class CacheVolume(Fields):
    """A claim that the operator makes."""

    storage_class_name: ObjectName | None = None
    """Storage class; the cluster's default when unset."""

    size: Quantity
    """Size of the volume, such as 200Gi. The claim grows with it, and stays as it is under a smaller one."""

    access_modes: Annotated[list[AccessMode], Field(min_length=1, max_length=3)] = Field(default_factory=_shared)
    """ReadWriteMany, unless all replicas run on one node."""

    reclaim: Literal["Delete", "Retain"] = "Delete"
    """Whether the claim goes with the LLMService."""

    rules = (
        Rule(
            cel="has(self.storageClassName) == has(oldSelf.storageClassName)"
            " && (!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName)",
            message="spec.cache.volume.storageClassName cannot change: make another claim and name it in claimName",
            field=".storageClassName",
            holds=None,
        ),
        Rule(
            cel="self.accessModes == oldSelf.accessModes",
            message="spec.cache.volume.accessModes cannot change: make another claim and name it in claimName",
            field=".accessModes",
            holds=None,
        ),
    )


HostPath = Annotated[
    str,
    Field(max_length=512),
    Rule(
        cel="self.startsWith('/') && !self.contains('..')",
        message="not a directory of a node: write an absolute path without '..', such as /mnt/nvme/models",
        holds=lambda path: path.startswith("/") and ".." not in path,
    ),
]


class EphemeralVolume(Fields):
    """A volume that lives as long as its pod."""

    size: Quantity
    """Size of the volume."""

    storage_class_name: ObjectName | None = None
    """Storage class; the cluster's default when unset."""


class LocalCache(Fields):
    """A copy on the node, made from the claim or the hub before the engine starts."""

    host_path: HostPath | None = None
    """Directory of the node, which user 10001 may write to. All pods of the node share it. It is never emptied."""

    ephemeral_volume: EphemeralVolume | None = None
    """A volume of the pod's own."""

    rules = (
        Rule(
            cel="has(self.hostPath) != has(self.ephemeralVolume)",
            message="spec.cache.local needs exactly one of hostPath and ephemeralVolume",
            holds=lambda self: (self.host_path is not None) != (self.ephemeral_volume is not None),
        ),
    )


class Cache(Fields):
    """Where weights from the hub are kept."""

    claim_name: ObjectName | None = None
    """An existing claim of the LLMService's namespace."""

    volume: CacheVolume | None = None
    """A claim that the operator makes, named after the LLMService."""

    local: LocalCache | None = None
    """A copy on each node, besides either or alone: engines load it from there."""

    prefetch: bool = True
    """Have Jobs download model and adapters before pods start, which then need no hub. Without it, pods download."""

    keep_revisions: Annotated[int, Field(ge=0, le=100)] = 1
    """Older revisions of each that stay on the claim once a newer one is there, besides those that are served."""

    rules = (
        Rule(
            cel="!(has(self.claimName) && has(self.volume))",
            message="spec.cache has both claimName and volume: keep claimName for a claim that exists, "
            "or volume for one that the operator makes",
            field=".volume",
            holds=lambda self: self.claim_name is None or self.volume is None,
        ),
        Rule(
            cel="has(self.claimName) || has(self.volume) || has(self.local)",
            message="spec.cache is empty: write claimName, volume or local, or leave cache out",
            holds=lambda self: not (self.claim_name is None and self.volume is None and self.local is None),
        ),
        Rule(
            cel="!(has(self.local) && (has(self.claimName) || has(self.volume)))"
            " || !has(self.prefetch) || self.prefetch",
            message="spec.cache.local is copied from the claim, which prefetch: false leaves empty: write prefetch: "
            "true, or leave the claim out to have each node download",
            field=".prefetch",
            holds=lambda self: self.prefetch or self.local is None or (self.claim_name is None and self.volume is None),
        ),
    )
