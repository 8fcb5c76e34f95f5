"""Images are fetched from hosts that were allowed, within a time and a size, and from nowhere else."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.cluster.certificates import Authority, alternative_names
from quire_engine.multimodal.image_files import MAX_BYTES
from quire_engine.server.image_download import ImageDownload
from quire_engine.server.image_urls import host_of_flag, may_lead_to, parsed
from quire_engine.server.settings import ServerSettings
from tests.engine.server.image_host import IMAGE_FILE, ImageHost, image_host

PATIENT, IMPATIENT = 60.0, 0.5
"""Seconds: for what comes, on a machine that does a lot besides, and for what never comes."""


@pytest.fixture(scope="module")
def host() -> Iterator[ImageHost]:
    with image_host() as started:
        yield started


@pytest.mark.parametrize("path", ["/cat", "/chunked", "/untyped", "/to/cat", "/to/to/to/cat", "/cat?size=a b&c=ü"])
async def test_an_image_at_an_allowed_host_is_fetched(host: ImageHost, path: str) -> None:
    assert await ImageDownload(["127.0.0.1"], PATIENT).fetch(host.url(path)) == IMAGE_FILE


async def test_a_host_that_is_allowed_by_name_is_asked_by_its_name(host: ImageHost) -> None:
    assert await ImageDownload(["localhost"], PATIENT).fetch(host.url("/cat?by-name", "LocalHost")) == IMAGE_FILE
    assert ("/cat?by-name", f"localhost:{host.server_port}") in host.asked


async def test_nothing_is_fetched_by_default(host: ImageHost) -> None:
    with pytest.raises(
        ValueError, match=r"unless the server has --allowed-media-domains 127\.0\.0\.1: send it as data:"
    ):
        await ImageDownload().fetch(host.url("/cat?default"))
    assert all(path != "/cat?default" for path, _ in host.asked)


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:{port}/cat?other",
        "http://127.0.0.1.example.com:{port}/cat?other",
        "http://2130706433:{port}/cat?other",
        "http://0x7f.1:{port}/cat?other",
        "http://[::ffff:127.0.0.1]:{port}/cat?other",
        "http://127.0.0.1:{port}@localhost:{port}/cat?other",
        "http://localhost:{port}\\@127.0.0.1/cat?other",
        "http://localhost:{port}#@127.0.0.1/cat?other",
        "http://127.0.0.1:{port}/to/http://localhost:{port}/cat?other",
        "http://127.0.0.1:{port}/to/to/http://169.254.169.254/latest?other",
        "http://127.0.0.1:{port}/to/file:///etc/passwd",
    ],
)
async def test_nothing_is_fetched_from_another_host_however_it_is_written(host: ImageHost, url: str) -> None:
    with pytest.raises(ValueError, match=r"--allowed-media-domains|leave them out|it must begin with|cannot be read"):
        await ImageDownload(["127.0.0.1"], PATIENT).fetch(url.replace("{port}", str(host.server_port)))
    assert all(path != "/cat?other" for path, _ in host.asked)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/none", "127.0.0.1 answered with status 404"),
        ("/page", r"127.0.0.1 sent 'text/html; charset=utf-8', which is no type of an image"),
        ("/long", f"the image at 127.0.0.1 has more than {MAX_BYTES} bytes"),
        ("/endless", f"the image at 127.0.0.1 has more than {MAX_BYTES} bytes"),
        ("/round", "127.0.0.1 redirects more than 3 times"),
        ("/cut", "cannot be fetched from 127.0.0.1: peer closed connection"),
        ("/gone", "cannot be fetched from 127.0.0.1: "),
        ("/no-http", "cannot be fetched from 127.0.0.1: "),
    ],
)
async def test_what_a_host_does_instead_is_said_with_its_name(host: ImageHost, path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        await ImageDownload(["127.0.0.1"], PATIENT).fetch(host.url(path))


@pytest.mark.parametrize("path", ["/silent", "/slow", "/to/slow"])
async def test_an_image_that_takes_too_long_is_given_up(host: ImageHost, path: str) -> None:
    with pytest.raises(ValueError, match=r"127.0.0.1 did not send the image within 0.5 s.*--media-fetch-timeout"):
        await ImageDownload(["127.0.0.1"], IMPATIENT).fetch(host.url(path))


async def test_slow_hosts_do_not_stop_the_event_loop(host: ImageHost) -> None:
    download = ImageDownload(["127.0.0.1"], PATIENT)
    slow = asyncio.create_task(download.fetch(host.url("/silent")))
    assert await download.fetch(host.url("/cat")) == IMAGE_FILE
    assert not slow.done()
    slow.cancel()


async def test_a_host_that_is_not_there_is_said() -> None:
    with socket.socket() as taken:  # bound, and not listening
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(ValueError, match=r"the image cannot be fetched from 127\.0\.0\.1: "):
            await ImageDownload(["127.0.0.1"], PATIENT).fetch(f"http://127.0.0.1:{taken.getsockname()[1]}/")


async def test_a_server_without_tls_is_said(host: ImageHost) -> None:
    with pytest.raises(ValueError, match=r"the image cannot be fetched from 127\.0\.0\.1: "):
        await ImageDownload(["127.0.0.1"], PATIENT).fetch(host.url("/cat").replace("http:", "https:"))


async def test_a_host_is_known_by_its_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("host", "host", [alternative_names(["localhost"], [])])
    with image_host(pair) as host:
        allowed = ["localhost", "127.0.0.1"]
        with pytest.raises(ValueError, match=r"the image cannot be fetched from localhost: .*certificate"):
            await ImageDownload(allowed, PATIENT).fetch(host.url("/cat", "localhost"))
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.pair.certificate))
        assert await ImageDownload(allowed, PATIENT).fetch(host.url("/cat", "localhost")) == IMAGE_FILE
        with pytest.raises(ValueError, match=r"the image cannot be fetched from 127\.0\.0\.1: .*certificate"):
            await ImageDownload(allowed, PATIENT).fetch(host.url("/cat"))
        with pytest.raises(ValueError, match="localhost redirects from https to http"):
            await ImageDownload(allowed, PATIENT).fetch(host.url("/to/http://127.0.0.1/cat", "localhost"))


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "169.254.169.254", "::1", "fe80::1%eth0", "::ffff:127.0.0.1", "0.0.0.0"]
)
async def test_a_name_that_leads_to_this_machine_or_its_neighbours_is_not_followed(
    host: ImageHost, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    loop = asyncio.get_running_loop()

    async def resolved(*_: object, **__: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, host.server_port))]

    monkeypatch.setattr(loop, "getaddrinfo", resolved)
    with pytest.raises(ValueError, match=f"cdn.example.com has the address {address}, which is none of another"):
        await ImageDownload(["cdn.example.com"], PATIENT).fetch("http://cdn.example.com/cat")


@pytest.mark.parametrize(
    ("name", "address"), [("images.svc", "10.0.0.7"), ("a.com", "93.184.216.34"), ("169.254.1.1", "169.254.1.1")]
)
def test_a_name_may_lead_to_other_machines_and_an_address_to_itself(name: str, address: str) -> None:
    assert may_lead_to(name, address)


@pytest.mark.parametrize(
    ("url", "host", "port", "target"),
    [
        ("https://Images.Example.com./a/b.png?c=d#e", "images.example.com", 443, "/a/b.png?c=d"),
        ("http://bücher.example/", "xn--bcher-kva.example", 80, "/"),
        ("http://[2001:db8::1]:8080", "2001:db8::1", 8080, "/"),
        ("https://a.com/ä b\u0000", "a.com", 443, "/%C3%A4%20b%00"),
    ],
)
def test_urls_are_taken_apart(url: str, host: str, port: int, target: str) -> None:
    found = parsed(url)
    assert (found.host, found.port, found.target) == (host, port, target)


@pytest.mark.parametrize(
    "url",
    ["ftp://a.com/b", "http://", "http:///b", "http://a.com:99999/", "http://[::1/", "https://u:p@a.com/", "x" * 9000],
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="the URL "):
        parsed(url)


@pytest.mark.parametrize("value", ["https://a.com", "a.com/b", "a.com:80", "", "*", "a b"])
def test_the_flag_takes_hosts_alone(value: str) -> None:
    with pytest.raises(ValueError, match=r"--allowed-media-domains has .*name hosts alone"):
        ServerSettings(allowed_media_domains=("b.com", value))


def test_the_flag_compares_hosts_as_urls_have_them() -> None:
    assert [host_of_flag(text) for text in ("A.com.", "[::1]", "bücher.example")] == [
        "a.com",
        "::1",
        "xn--bcher-kva.example",
    ]
