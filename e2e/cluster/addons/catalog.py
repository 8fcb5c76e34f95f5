"""All add-ons by name, and how they are started."""

from __future__ import annotations

from collections.abc import Iterable

from e2e.cluster import binaries, node
from e2e.cluster.addons.adapter import Adapter
from e2e.cluster.addons.addon import Addon, RunningNode
from e2e.cluster.addons.keda import Keda
from e2e.cluster.addons.kwok import Kwok
from e2e.cluster.addons.lws import Lws
from e2e.cluster.addons.monitoring_crds import MonitoringCrds
from e2e.cluster.addons.network_policy import NetworkPolicy
from e2e.cluster.addons.prometheus import Prometheus
from e2e.cluster.errors import ClusterError
from e2e.cluster.one_at_a_time import alone
from e2e.cluster.progress import say, stage

ADDONS: dict[str, type[Addon]] = {
    addon.name: addon for addon in (Prometheus, Keda, Adapter, MonitoringCrds, Lws, NetworkPolicy, Kwok)
}


def start(*names: str) -> None:
    """Start add-ons, and those they require, on the node that is up. What runs already is left alone.

    Raises ClusterError for an unknown name, where there is no node, and when one does not come up.
    """
    wanted = ordered(names)
    binaries.ensure(*dict.fromkeys(program for name in wanted for program in ADDONS[name].programs))
    with alone():
        if not node.is_up():
            raise ClusterError("add-ons stand on a node and there is none: python3 -m e2e.cluster up")
        running = RunningNode()
        for name in wanted:
            addon = ADDONS[name](running)
            if addon.is_up():
                say(f"{name} is already up")
                continue
            with stage(f"Starting {name}"):
                addon.start()


def ordered(names: Iterable[str]) -> list[str]:
    """These add-ons and what they require, each once and after what it requires. Raises ClusterError if unknown."""
    found: dict[str, None] = {}
    for name in names:
        if name not in ADDONS:
            raise ClusterError(f"there is no add-on {name!r}; write one of: {', '.join(ADDONS)}")
        found |= dict.fromkeys([*ordered(ADDONS[name].requires), name])
    return list(found)


def status() -> str:
    """Which add-ons are up, in one line; empty without a node."""
    if not node.is_up():
        return ""
    running = RunningNode()
    up = [name for name, addon in ADDONS.items() if addon(running).is_up()]
    return f"add-ons: {', '.join(up) or 'none'}"
