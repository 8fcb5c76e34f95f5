"""Which children have to be applied or deleted. Decided here without any effect, then carried out by `children`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from quire_operator.api import LLMService
from quire_operator.builders.identity import APPLIED_HASH, Manifest
from quire_operator.builders.scaling import BACKENDS
from quire_operator.kubeapi.client import Object
from quire_operator.kubeapi.resources import PROMETHEUS_RULES, SERVICE_MONITORS
from quire_operator.reconcile.difference import first_difference
from quire_operator.reconcile.ownership import controller_of, is_own

ChildKey = tuple[str, str]
"""Kind and name."""


@dataclass(frozen=True)
class Apply:
    """Make the child as `manifest` says."""

    manifest: Manifest
    live: Object | None
    """As last seen; None when the name is not among what we watch, which a stranger's object would not be either."""

    why: str
    """`missing`, or the first field that differs."""


@dataclass(frozen=True)
class Delete:
    """Remove a child that is no longer wanted."""

    kind: str
    live: Object


Change = Apply | Delete


def changes(
    service: LLMService,
    desired: Sequence[Manifest],
    observed: Mapping[ChildKey, Object],
    settled: Mapping[ChildKey, tuple[str, str]],
    held: Collection[str] = (),
    needed: Collection[ChildKey] = (),
) -> list[Change]:
    """What to do, in order: scalers go before anything else, so that nothing fights over replicas. Nothing at rest.

    Children of the kinds `held`, and `needed` ones, stay though they are not desired.

    `settled` holds digest and resourceVersion of children whose last apply changed nothing, though they look
    different: the API server normalises some value in a way that we do not know of, and would be asked for ever.
    """
    wanted = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in desired}
    unwanted = [change for change in _unwanted(service, {*wanted, *needed}, observed) if change.kind not in held]
    result: list[Change] = [change for change in unwanted if is_scaler(change.kind)]
    for manifest in desired:
        key = (manifest["kind"], manifest["metadata"]["name"])
        why = _why_apply(manifest, observed.get(key), settled.get(key))
        if why is not None:
            result.append(Apply(manifest, observed.get(key), why))
    result += [change for change in unwanted if not is_scaler(change.kind)]
    return result


def is_scaler(kind: str) -> bool:
    """Whether children of this kind set the replicas of another."""
    return kind in BACKENDS.values()


def is_aside(kind: str) -> bool:
    """Whether a service serves without children of this kind, so that trouble with them holds nothing up."""
    return is_scaler(kind) or kind in (SERVICE_MONITORS.kind, PROMETHEUS_RULES.kind)


def _why_apply(manifest: Manifest, live: Object | None, settled: tuple[str, str] | None) -> str | None:
    if live is None:
        return "missing"
    digest = manifest["metadata"]["annotations"][APPLIED_HASH]
    if settled == (digest, live["metadata"]["resourceVersion"]):
        return None
    body = {key: value for key, value in manifest.items() if key not in ("apiVersion", "kind")}
    return first_difference(body, live)


def _unwanted(service: LLMService, wanted: Iterable[ChildKey], observed: Mapping[ChildKey, Object]) -> Iterator[Delete]:
    keep = set(wanted)
    for key, live in observed.items():
        # an orphan keeps what it holds, but for a scaler, which would go on to set replicas
        ours = is_own(live, service) and (is_scaler(key[0]) or controller_of(live) is not None)
        if key not in keep and ours and not live["metadata"].get("deletionTimestamp"):
            yield Delete(key[0], live)
