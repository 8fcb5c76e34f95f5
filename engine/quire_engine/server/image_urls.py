"""Which URLs of images may be fetched: none but those at hosts that --allowed-media-domains names."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

FLAG = "--allowed-media-domains"
_PORTS = {"http": 80, "https": 443}
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9_])?")
_LONGEST = 8192
# What may stand in a path or a query as it is; anything else is written in bytes.
_SAFE = "/%:@!$&'()*+,;=~-._?"


@dataclass(frozen=True, slots=True)
class ImageUrl:
    """A URL of HTTP, taken apart once, so that what is looked at is what is fetched."""

    scheme: str  # http or https
    host: str  # lower case; an address of IPv6 without brackets
    port: int
    target: str  # path and query, ASCII

    @property
    def authority(self) -> str:
        """What the header Host holds."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def joined(self, location: str) -> ImageUrl:
        """Where an answer from here leads to. Raises `ValueError` as `parsed`."""
        return parsed(urljoin(f"{self.scheme}://{self.authority}{self.target}", location))


def is_fetched(url: str) -> bool:
    """Whether `url` is one of HTTP, rather than one that holds the image itself."""
    return url[:8].lower().startswith(("http://", "https://"))


def parsed(url: str) -> ImageUrl:
    """Raises `ValueError` that says what is wrong with it."""
    if len(url) > _LONGEST:
        raise ValueError(f"the URL has {len(url)} characters: it must have at most {_LONGEST}")
    try:
        parts = urlsplit(url)
        host, port = _ascii(parts.hostname or ""), parts.port
    except ValueError as error:
        raise ValueError(f"the URL {url[:64]!r} cannot be read: {error}") from error
    if parts.scheme not in _PORTS or not host:
        raise ValueError(f"the URL begins with {url[:24]!r}: it must begin with https:// or http://, and a host")
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"the URL has a user or a password for {host}: leave them out")
    target = quote(parts.path or "/", _SAFE) + (f"?{quote(parts.query, _SAFE)}" if parts.query else "")
    return ImageUrl(parts.scheme, host, port or _PORTS[parts.scheme], target)


def host_of_flag(text: str) -> str:
    """One of the flag's values, as hosts are compared. Raises `ValueError` for what is no host."""
    try:
        host = _ascii(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        host = ""
    if not host or not (_address(host) or _NAME.fullmatch(host)):
        raise ValueError(f"{FLAG} has {text!r}: name hosts alone, such as images.example.com")
    return host


def check_host(url: ImageUrl, allowed: frozenset[str], *, sent_from: str | None = None) -> None:
    """Raise `ValueError` for a host that is not `allowed`, which the host `sent_from` may have redirected to."""
    if url.host in allowed:
        return
    where = f"{sent_from} redirects to {url.host}" if sent_from else f"it is at {url.host}"
    what = f"the server was started with {FLAG} that names it" if allowed else f"the server has {FLAG} {url.host}"
    raise ValueError(f"{where}, and no image is fetched from there unless {what}: send it as data:image/png;base64,...")


def may_lead_to(host: str, address: str) -> bool:
    """Whether an allowed `host` may have `address`.

    A name may have a private address, as services of a cluster do. It never leads to this machine or its neighbours,
    where clouds keep what a machine may do: those have to be allowed as addresses, or as localhost.
    """
    if _address(host) or host == "localhost":
        return True
    found = _address(address.partition("%")[0])
    if found is None:
        return False
    found = getattr(found, "ipv4_mapped", None) or found
    return not (found.is_loopback or found.is_link_local or found.is_multicast or found.is_unspecified)


def _ascii(host: str) -> str:
    """A name in lower case, those of other alphabets in their ASCII form, without the root's dot."""
    host = host.lower().removesuffix(".")
    return host if host.isascii() else host.encode("idna").decode("ascii")


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
