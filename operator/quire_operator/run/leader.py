"""Leader election by a Lease: one replica works, the others wait."""

from __future__ import annotations

import asyncio
import datetime
import logging
import os
import secrets
import time
from typing import Any

from quire_operator import metrics
from quire_operator.kubeapi.client import Client, Object
from quire_operator.kubeapi.errors import ApiError, UnreachableError
from quire_operator.kubeapi.resources import LEASES

logger = logging.getLogger(__name__)

_SHORTEST_PAUSE = 0.1


class LeadershipLostError(Exception):
    """Another replica may be leading by now: nothing more may be written."""


class Leader:
    """`acquire`, then `keep` for as long as there is something to lead, then `release`."""

    def __init__(self, client: Client, namespace: str, name: str, seconds: int) -> None:
        self.identity = f"{os.environ.get('HOSTNAME', 'quire-operator')}-{secrets.token_hex(4)}"
        self._client, self._namespace, self._name, self._seconds = client, namespace, name, seconds
        self._seen: tuple[str, float] = ("", 0.0)
        """resourceVersion of another's Lease, and when it was first seen on our own clock: theirs may be wrong."""
        self._held: Object | None = None
        """The Lease as we wrote it last: renewed without reading it, unless somebody else wrote since."""
        self.renewed_at = time.monotonic()

    async def acquire(self) -> None:
        """Wait until the Lease is ours."""
        logger.info("waiting for the lease %s/%s as %s", self._namespace, self._name, self.identity)
        while True:
            try:
                if await self._try():
                    break
            except (ApiError, UnreachableError) as error:
                logger.warning("the lease cannot be taken: %s", error)
            self.renewed_at = time.monotonic()
            await asyncio.sleep(min(2.0, self._seconds / 5))
        metrics.leading.set(1)
        logger.info("leading as %s", self.identity)

    async def keep(self) -> None:
        """Renew the Lease for ever. Raises LeadershipLostError in time before anybody else may take it."""
        while True:
            await asyncio.sleep(min(self._seconds / 5, max(_SHORTEST_PAUSE, self._left() / 2)))
            try:
                async with asyncio.timeout(max(0.0, min(self._seconds / 3, self._left()))):
                    kept = await self._try()
            except (ApiError, UnreachableError, TimeoutError) as error:
                logger.warning("the lease could not be renewed: %s", error)
                kept = True
            if not kept:
                raise LeadershipLostError("the lease was taken by another replica")
            if self._left() <= 0:
                raise LeadershipLostError(f"the lease could not be renewed for {self._seconds * 2 / 3:.0f} s")

    def _left(self) -> float:
        """Seconds to renew the Lease in: others take it later, and what was begun by then has ended."""
        return self.renewed_at + self._seconds * 2 / 3 - time.monotonic()

    async def release(self) -> None:
        """Let another replica lead at once."""
        metrics.leading.set(0)
        try:
            lease = await self._client.get(LEASES, self._namespace, self._name)
            if lease is not None and lease["spec"].get("holderIdentity") == self.identity:
                lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
                await self._client.replace(LEASES, lease)
        except (ApiError, UnreachableError) as error:
            logger.warning("the lease could not be released: %s", error)

    async def _try(self) -> bool:
        """Take or renew the Lease; False while it is another's."""
        begun = time.monotonic()
        held, self._held = self._held, None
        lease = held or await self._client.get(LEASES, self._namespace, self._name)
        try:
            if lease is None:
                self._held = await self._client.create(LEASES, self._record(None))
            elif self._may_take(lease):
                self._held = await self._client.replace(LEASES, self._record(lease))
            else:
                return False
        except ApiError as error:
            if error.status not in (404, 409):
                raise
            # what we held was changed or removed, which only a look at it can judge; else another replica was faster
            return await self._try() if held is not None else False
        self.renewed_at = begun
        return True

    def _may_take(self, lease: Object) -> bool:
        holder = lease["spec"].get("holderIdentity")
        if not holder or holder == self.identity:
            return True
        version = lease["metadata"]["resourceVersion"]
        if self._seen[0] != version:
            self._seen = (version, time.monotonic())
            return False
        return time.monotonic() - self._seen[1] > float(lease["spec"].get("leaseDurationSeconds") or self._seconds)

    def _record(self, lease: Object | None) -> Object:
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        old: dict[str, Any] = lease["spec"] if lease is not None else {}
        is_ours = old.get("holderIdentity") == self.identity
        spec = {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": self._seconds,
            "renewTime": now,
            "acquireTime": old.get("acquireTime", now) if is_ours else now,
            "leaseTransitions": int(old.get("leaseTransitions") or 0) + (0 if is_ours or lease is None else 1),
        }
        metadata = lease["metadata"] if lease is not None else {"name": self._name, "namespace": self._namespace}
        return {"apiVersion": LEASES.api_version, "kind": LEASES.kind, "metadata": metadata, "spec": spec}
