"""The client: JSON over one pooled connection, every call counted by verb, resource and code."""

from __future__ import annotations

import asyncio
import datetime
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Self

import aiohttp

from quire_operator import metrics
from quire_operator.kubeapi.errors import ApiError, UnreachableError
from quire_operator.kubeapi.login import login
from quire_operator.kubeapi.resources import API_GROUPS, Resource

Object = dict[str, Any]

_APPLY_PATCH = "application/apply-patch+yaml"
_METADATA_ALONE = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_ONE_METADATA_ALONE = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
_ALL_GROUPS = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
_TIMEOUT = aiohttp.ClientTimeout(total=30)
_SILENCE_SECONDS = 90
"""A watch that is silent for longer is dead, or of a kind of which nothing happens beside an etcd that does not notify
the API server of its progress: bookmarks come every minute else."""

_NO_ANSWER = (aiohttp.ClientError, asyncio.TimeoutError, ConnectionError)


class Client:
    """Use as an async context manager. Raises ApiError for an answer that is an error, UnreachableError for none."""

    def __init__(self, connections: int = 50) -> None:
        self._connections = connections
        self.info = login()

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(limit=0, ssl=self._tls(), keepalive_timeout=60)
        self._slots = asyncio.Semaphore(self._connections)
        self._session = aiohttp.ClientSession(base_url=self.info.server, connector=connector, timeout=_TIMEOUT)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._session.close()

    async def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        """The object, or None when there is none."""
        try:
            return await self._call("get", resource, resource.path(namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def list(self, resource: Resource, namespace: str | None, selector: str = "") -> Object:
        """The list object, from the API server's cache."""
        parameters = {"resourceVersion": "0", **({"labelSelector": selector} if selector else {})}
        return await self._call("list", resource, resource.path(namespace), parameters=parameters)

    async def list_metadata(self, resource: Resource, selector: str) -> Object:
        """The list object of all namespaces, where each item has its metadata alone."""
        parameters = {"resourceVersion": "0", "labelSelector": selector}
        return await self._call("list", resource, resource.path(), parameters=parameters, accept=_METADATA_ALONE)

    async def get_metadata(self, resource: Resource, name: str) -> Object:
        """An object of the cluster's, with its metadata alone."""
        return await self._call("get", resource, resource.path(name=name), accept=_ONE_METADATA_ALONE)

    async def discover(self, etag: str) -> tuple[Object | None, str]:
        """All API groups but the core with their resources, and the answer's ETag; None while `etag` is still true."""
        unless = {"If-None-Match": etag} if etag else {}
        request = self._request("discover", API_GROUPS, "GET", "/apis", accept=_ALL_GROUPS, extra=unless)
        async with self._slots, request as response:
            if response.status == 304:
                return None, etag
            try:
                return await response.json(content_type=None), response.headers.get("ETag", "")
            except (*_NO_ANSWER, ValueError) as error:
                raise UnreachableError(f"GET /apis broke: {error!r}") from error

    async def apply(
        self,
        resource: Resource,
        manifest: Mapping[str, Any],
        manager: str,
        *,
        force: bool,
        subresource: str | None = None,
    ) -> Object:
        """Server-side apply."""
        metadata = manifest["metadata"]
        parameters = {"fieldManager": manager, "force": str(force).lower()}
        path = resource.path(metadata["namespace"], metadata["name"], subresource)
        return await self._call("apply", resource, path, parameters=parameters, body=manifest, content=_APPLY_PATCH)

    async def create(self, resource: Resource, manifest: Mapping[str, Any]) -> Object:
        """A new object."""
        return await self._call("create", resource, resource.path(manifest["metadata"]["namespace"]), body=manifest)

    async def replace(self, resource: Resource, manifest: Mapping[str, Any]) -> Object:
        """The whole object anew; its resourceVersion must still be the live one's."""
        metadata = manifest["metadata"]
        return await self._call(
            "update", resource, resource.path(metadata["namespace"], metadata["name"]), body=manifest
        )

    async def delete(self, resource: Resource, namespace: str, name: str, uid: str) -> None:
        """Delete the object of that uid and what it owns; another of its name is left alone."""
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": {"uid": uid},
        }
        try:
            await self._call("delete", resource, resource.path(namespace, name), body=options)
        except ApiError as error:
            if error.status not in (404, 409):
                raise

    async def watch(
        self, resource: Resource, namespace: str | None, version: str, selector: str = ""
    ) -> AsyncIterator[Object]:
        """Changes since `version`, bookmarks included, until the server ends the stream or is silent for long.

        How long a watch lasts is left to the server: half an hour to an hour, and each ends at another time. A watch
        from the last version then misses nothing, and where the connection was dead its beginning tells.
        """
        parameters = {
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            **({"labelSelector": selector} if selector else {}),
        }
        limits = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=_SILENCE_SECONDS)
        path = resource.path(namespace)
        async with self._request("watch", resource, "GET", path, parameters, None, "", limits) as response:
            try:
                # a line is one event, and a large object makes a line longer than aiohttp's own limit
                rest = b""
                async for chunk in response.content.iter_any():
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        yield json.loads(line)
            except TimeoutError:
                return
            except _NO_ANSWER as error:
                raise UnreachableError(f"watch of {path} broke: {error!r}") from error

    async def _call(
        self,
        verb: str,
        resource: Resource,
        path: str,
        *,
        parameters: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content: str = "application/json",
        accept: str = "application/json",
    ) -> Object:
        method = _METHODS[verb]
        request = self._request(verb, resource, method, path, parameters, body, content, accept=accept)
        async with self._slots, request as response:
            try:
                result: Object = await response.json(content_type=None)
            except (*_NO_ANSWER, ValueError) as error:  # what is no JSON is of somebody in between
                raise UnreachableError(f"{method} {path} broke: {error!r}") from error
            return result

    @asynccontextmanager
    async def _request(
        self,
        verb: str,
        resource: Resource,
        method: str,
        path: str,
        parameters: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content: str = "",
        limits: aiohttp.ClientTimeout = _TIMEOUT,
        accept: str = "application/json",
        extra: Mapping[str, str] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {"Accept": accept, **self._headers(), **(extra or {})}
        if body is not None:
            headers["Content-Type"] = content
        data = json.dumps(body).encode() if body is not None else None
        try:
            response = await self._session.request(
                method, path, params=parameters, data=data, headers=headers, timeout=limits
            )
        except _NO_ANSWER as error:
            metrics.api_calls.labels(verb, resource.plural, "unreachable").inc()
            raise UnreachableError(f"{method} {path}: {error!r}") from error
        metrics.api_calls.labels(verb, resource.plural, str(response.status)).inc()
        async with response:
            if response.status >= 400:
                raise await _error(response, f"{method} {path}")
            yield response

    def _headers(self) -> dict[str, str]:
        expiration = self.info.expiration
        if expiration is not None and expiration <= datetime.datetime.now(datetime.UTC):
            self.info = login()
        return self.info.as_http_headers()

    def _tls(self) -> ssl.SSLContext | bool:
        return self.info.as_ssl_context() if self.info.server.startswith("https:") else False


_METHODS = {"get": "GET", "list": "GET", "apply": "PATCH", "create": "POST", "update": "PUT", "delete": "DELETE"}


async def _error(response: aiohttp.ClientResponse, what: str) -> ApiError:
    text = await response.text(errors="replace")
    try:
        body = json.loads(text)
    except ValueError:
        body = {"message": text.strip()[:500]}
    retry_after = response.headers.get("Retry-After", "")
    delay = float(retry_after) if retry_after.isdecimal() else None
    return ApiError(response.status, body if isinstance(body, dict) else {"message": text}, what, delay)
