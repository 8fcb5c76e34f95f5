"""Fetches images over HTTP for clients, within a time and a size, from hosts that are allowed alone."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterable
from functools import cached_property

import h11

from quire_engine.multimodal.image_files import MAX_BYTES
from quire_engine.server.image_urls import ImageUrl, check_host, may_lead_to, parsed

_AT_ONCE = 16  # each may hold as many bytes as an image may have
_REDIRECTS = 3
_REDIRECTED = (301, 302, 303, 307, 308)
_CHUNK = 64 << 10
_MOST_HEADERS = 64 << 10
# Beside those of images, what stores call that they know no type of.
_TYPES = ("image/", "application/octet-stream", "binary/octet-stream")


class ImageDownload:
    """Gets the bytes of images at allowed hosts. No proxy is used: it would choose the address."""

    def __init__(self, allowed: Iterable[str] = (), timeout: float = 10.0) -> None:
        """`allowed` are hosts as `host_of_flag` gives them; `timeout` is in seconds, for one image with redirects."""
        self._allowed, self._timeout = frozenset(allowed), timeout
        self._places = asyncio.Semaphore(_AT_ONCE)

    async def fetch(self, text: str) -> bytes:
        """The bytes of the image at a URL. Raises `ValueError` that names its host, and what to change."""
        url = parsed(text)
        check_host(url, self._allowed)
        async with self._places:
            try:
                async with asyncio.timeout(self._timeout):
                    return await self._follow(url)
            except TimeoutError as error:
                raise ValueError(
                    f"{url.host} did not send the image within {self._timeout:g} s: send it as "
                    "data:image/png;base64,..., or start the server with a higher --media-fetch-timeout"
                ) from error
            except (OSError, h11.RemoteProtocolError) as error:
                raise ValueError(f"the image cannot be fetched from {url.host}: {_first_line(error)}") from error

    async def _follow(self, url: ImageUrl) -> bytes:
        for _ in range(1 + _REDIRECTS):
            answer = await self._get(url)
            if isinstance(answer, bytes):
                return answer
            target = url.joined(answer)
            check_host(target, self._allowed, sent_from=url.host)
            if target.scheme == "http" and url.scheme == "https":
                raise ValueError(f"{url.host} redirects from https to http: send the URL that it redirects to")
            url = target
        raise ValueError(f"{url.host} redirects more than {_REDIRECTS} times: send the URL that it leads to")

    async def _get(self, url: ImageUrl) -> bytes | str:
        """The body of an answer, or where it leads to."""
        reader, writer = await self._connect(url)
        try:
            peer = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MOST_HEADERS)
            headers = {
                "Host": url.authority,
                "Accept": "image/*",
                "Accept-Encoding": "identity",
                "User-Agent": "quire-engine",
                "Connection": "close",
            }
            request = h11.Request(method="GET", target=url.target, headers=list(headers.items()))
            writer.write(peer.send(request) + peer.send(h11.EndOfMessage()))
            body = bytearray()
            while True:
                event = peer.next_event()
                if event is h11.NEED_DATA:
                    peer.receive_data(await reader.read(_CHUNK))
                elif isinstance(event, h11.Response):
                    location = _location_of(url, event)
                    if location is not None:
                        return location
                elif isinstance(event, h11.Data):
                    body += event.data
                    _check_size(url, len(body))
                elif isinstance(event, h11.EndOfMessage):
                    return bytes(body)
        finally:
            writer.transport.abort()

    async def _connect(self, url: ImageUrl) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to one of the host's addresses, which was looked at: the name is not asked for again."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
        addresses = [str(entry[4][0]) for entry in found if may_lead_to(url.host, str(entry[4][0]))]
        if not addresses:
            raise ValueError(
                f"{url.host} has the address {found[0][4][0]}, which is none of another machine: "
                "it must be allowed as an address itself, by --allowed-media-domains"
            )
        failure: OSError | None = None
        for address in dict.fromkeys(addresses):
            try:
                if url.scheme == "http":
                    return await asyncio.open_connection(address, url.port)
                return await asyncio.open_connection(address, url.port, ssl=self._tls, server_hostname=url.host)
            except OSError as error:
                failure = error
        assert failure is not None  # there was an address
        raise failure

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context()


def _location_of(url: ImageUrl, response: h11.Response) -> str | None:
    """Where a redirect leads to; None where the image follows. Raises `ValueError` for any other answer."""
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in response.headers}
    if response.status_code in _REDIRECTED and "location" in headers:
        return headers["location"]
    if response.status_code != 200:
        raise ValueError(f"{url.host} answered with status {response.status_code}, not with an image")
    kind = headers.get("content-type", "").strip().lower()
    if not kind.startswith(_TYPES):
        raise ValueError(f"{url.host} sent {kind[:64] or 'no type'!r}, which is no type of an image")
    length = headers.get("content-length", "")
    _check_size(url, int(length) if length.isdecimal() else 0)
    return None


def _check_size(url: ImageUrl, size: int) -> None:
    if size > MAX_BYTES:
        raise ValueError(f"the image at {url.host} has more than {MAX_BYTES} bytes: it must have at most as many")


def _first_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
