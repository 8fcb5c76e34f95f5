"""What a client may do to a connection: be slow, send too much, offer other protocols, or send no HTTP at all."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from quire_engine.server.connection import MAX_HEAD_BYTES
from tests.engine.server.conftest import Server, launch, until

TIMEOUT = 1.5
BODY = json.dumps({"prompt": "Return", "max_tokens": 2, "temperature": 0}).encode()
LONG = json.dumps({"prompt": "Return", "max_tokens": 900, "ignore_eos": True, "stream": True}).encode()
CONNECT_HEADERS = "connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n"
WEBSOCKET = (
    "GET /v1/realtime HTTP/1.1\r\nhost: x\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\n"
    "sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@pytest.fixture(scope="module")
def impatient(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that gives a header, and a body, 1.5 s."""
    flags = "--served-model-name=tiny", f"--receive-timeout={TIMEOUT}"
    one = launch(tmp_path_factory.mktemp("impatient"), tiny_model_dir, *flags)
    one.wait_until_ready()
    yield one
    assert "Traceback" not in one.log
    assert "WARNING" not in one.log
    one.stop()


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


def head(body: bytes, more: str = "") -> bytes:
    named = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{more}"
    return f"{named}content-length: {len(body)}\r\n\r\n".encode()


def said(server: Server) -> list[str]:
    """Its log, without the lines that come every 10 s while it has work."""
    return [line for line in server.log.splitlines() if "tok/s" not in line]


def until_closed(connection: socket.socket) -> bytes:
    received = b""
    while piece := connection.recv(1 << 16):
        received += piece
    return received


def answer(received: bytes) -> tuple[int, dict[str, Any]]:
    """The status and body of one answer with a content-length."""
    top, _, body = received.partition(b"\r\n\r\n")
    return int(top.split()[1]), json.loads(body)


def one_answer(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    received = b""
    while True:
        piece = connection.recv(1 << 16)
        assert piece, received
        received += piece
        top, _, body = received.partition(b"\r\n\r\n")
        sizes = [line for line in top.lower().split(b"\r\n") if line.startswith(b"content-length")]
        if sizes and len(body) >= int(sizes[0].split(b":")[1]):
            return answer(received)


def refusal(received: bytes) -> tuple[int, str]:
    status, body = answer(received)
    assert body["error"]["code"] == status
    assert b"connection: close" in received.lower()
    return status, body["error"]["message"]


@pytest.mark.parametrize(("sent", "part"), [(head(BODY)[:30], "header"), (head(BODY) + BODY[:5], "body")])
def test_a_request_that_does_not_arrive_is_a_408(impatient: Server, sent: bytes, part: str) -> None:
    with connect(impatient) as connection:
        connection.sendall(sent)
        status, message = refusal(until_closed(connection))
    assert status == 408
    assert f"the request's {part} has not arrived within" in message
    assert httpx.get(f"{impatient.url}/load").json() == {"server_load": 0}


@pytest.mark.parametrize("begun", [head(BODY)[:-4] + b"\r\nx-slow: ", head(b"x" * 10**6)])
def test_single_bytes_do_not_keep_it_open(impatient: Server, begun: bytes) -> None:
    with connect(impatient) as connection:
        connection.sendall(begun)
        connection.settimeout(0.1)
        received, end = b"", time.monotonic() + 60
        while not received:
            assert time.monotonic() < end
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has answered, and closes
                connection.sendall(b"a")
            with contextlib.suppress(TimeoutError):
                received = connection.recv(1 << 16)
    assert refusal(received)[0] == 408


def test_a_connection_that_asks_for_nothing_is_closed_without_a_word(impatient: Server) -> None:
    with connect(impatient) as connection:
        assert until_closed(connection) == b""


def test_a_slow_link_gets_the_time_that_its_body_needs(impatient: Server) -> None:
    body = BODY[:-1] + b" " * 16 * 1024 + b"}"
    with connect(impatient) as connection:
        connection.sendall(head(body))
        for begin in range(0, len(body), 1024):  # 4 KiB/s: twice the time-out and more in all
            time.sleep(0.25)
            connection.sendall(body[begin : begin + 1024])
        status, completion = one_answer(connection)
    assert status == 200
    assert completion["usage"]["completion_tokens"] == 2


def test_between_requests_and_during_an_answer_nobody_is_timed(impatient: Server) -> None:
    with connect(impatient) as connection:
        for _ in range(2):
            connection.sendall(head(BODY) + BODY)
            assert one_answer(connection)[0] == 200
            time.sleep(2 * TIMEOUT)
        began = time.monotonic()
        connection.sendall(head(LONG) + LONG + b"\r\nPO")  # the next request begins while this one is answered
        received = until_closed(connection)
    assert b"data: [DONE]" in received
    assert received.count(b"HTTP/1.1 200") == 1
    ended = received.partition(b"data: [DONE]\n\n\r\n0\r\n\r\n")[2]
    assert refusal(ended)[0] == 408
    assert time.monotonic() - began > TIMEOUT


@pytest.mark.parametrize(("num_bytes", "whole"), [(MAX_HEAD_BYTES, True), (2**20, True), (2**20, False)])
def test_a_header_beyond_the_limit_is_a_431(server: Server, num_bytes: int, whole: bool) -> None:
    with connect(server) as connection:
        try:
            connection.sendall(head(BODY)[:-4] + b"\r\nx-large: " + b"a" * num_bytes)
            if whole:
                connection.sendall(b"\r\n\r\n")
            status, message = refusal(until_closed(connection))
        except (BrokenPipeError, ConnectionResetError):  # it was told while it still sent, and did not listen
            assert num_bytes > MAX_HEAD_BYTES
        else:
            assert status == 431
            assert str(MAX_HEAD_BYTES) in message
    assert server.health() == 200


def test_no_client_makes_it_hold_a_header_without_end(server: Server) -> None:
    before = peak_kib(server)
    with connect(server) as connection, pytest.raises((BrokenPipeError, ConnectionResetError)):
        send_headers_without_end(connection)
    assert peak_kib(server) - before < 20 * 1024
    assert server.health() == 200


def send_headers_without_end(connection: socket.socket) -> None:
    connection.sendall(head(BODY)[:-4])
    for number in range(200 * 1024):
        connection.sendall(b"\r\nx-%d: " % number + b"a" * 1000)


def peak_kib(server: Server) -> int:
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def test_a_websocket_is_refused_with_what_to_do_instead_and_no_line_in_the_log(server: Server) -> None:
    before = said(server)
    for _ in range(3):
        with connect(server) as connection:
            connection.sendall(WEBSOCKET.encode())
            status, message = refusal(until_closed(connection))
            assert status == 400
            assert "no websockets" in message
            assert "stream: true" in message
    assert said(server) == before


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("pieces", [1, 3])
def test_a_client_that_offers_http_2_is_served_by_http_1(server: Server, chunked: bool, pieces: int) -> None:
    """As Java's HttpClient does by default; uvicorn would lose the body."""
    request = head(BODY, CONNECT_HEADERS) + BODY
    if chunked:
        top = head(BODY, CONNECT_HEADERS).replace(b"content-length: %d" % len(BODY), b"transfer-encoding: chunked")
        request = top + b"%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n"
    before = said(server)
    with connect(server) as connection:
        for _ in range(2):
            step = -(-len(request) // pieces)
            for begin in range(0, len(request), step):
                connection.sendall(request[begin : begin + step])
                time.sleep(0.05 if pieces > 1 else 0)  # so that they arrive apart
            status, completion = one_answer(connection)
            assert status == 200
            assert completion["usage"]["completion_tokens"] == 2
    assert said(server) == before


def test_offers_of_http_2_one_after_another_are_answered_in_turn(server: Server) -> None:
    offer = f"GET /version HTTP/1.1\r\nhost: x\r\n{CONNECT_HEADERS}\r\n".encode()
    with connect(server) as connection:
        connection.sendall(offer * 3000 + b"GET /version HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert until_closed(connection).count(b"HTTP/1.1 200") == 3001


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # HTTPS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"hello\r\n\r\n",
        b"CONNECT host:443 HTTP/1.1\r\nhost: x\r\n\r\n",
        head(BODY).replace(b"content-length: ", b"content-length: x"),
        head(BODY, "transfer-encoding: chunked\r\n").replace(b"content-length", b"x") + b"zz\r\n",
    ],
)
def test_what_is_no_http_is_a_400_in_the_same_body(server: Server, sent: bytes) -> None:
    before = said(server)
    with connect(server) as connection:
        connection.sendall(sent)
        assert refusal(until_closed(connection))[0] == 400
    assert said(server) == before
    assert httpx.get(f"{server.url}/load").json() == {"server_load": 0}


def test_nonsense_after_a_request_lets_its_answer_end(server: Server) -> None:
    with connect(server) as connection:
        connection.sendall(head(LONG) + LONG + b"nonsense\r\n\r\n")
        received = until_closed(connection)
    assert received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    until(lambda: httpx.get(f"{server.url}/load").json() == {"server_load": 0}, 10)
