"""A client that reads nothing of what it has asked for: it slows nobody, and what waits for it has a bound."""

from __future__ import annotations

import json
import socket

import httpx
import pytest

from tests.engine.server.conftest import Server, StartServer, until
from tests.engine.server.test_load import MIB, resident_bytes

NUM_READERS, NUM_ANSWERS, NUM_TOKENS = 2, 8, 1000
ASKED = {
    "prompt": "Return",
    "max_tokens": NUM_TOKENS,
    "n": NUM_ANSWERS,
    "logprobs": 20,
    "stream": True,
    "ignore_eos": True,
}


def asks_and_does_not_read(server: Server) -> socket.socket:
    body = json.dumps({**ASKED, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}).encode()
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", server.port))
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    connection.sendall(f"{head}\r\n\r\n".encode() + body)
    return connection


@pytest.mark.slow
def test_a_client_that_does_not_read_slows_nobody_and_holds_little(start_server: StartServer) -> None:
    server = start_server()
    pid, others = server.process.pid, {"prompt": "Hello", "max_tokens": 4}
    httpx.post(f"{server.url}/v1/completions", json=others, timeout=60).raise_for_status()
    before, num_asked = resident_bytes(pid), NUM_READERS * NUM_ANSWERS * NUM_TOKENS
    readers = [asks_and_does_not_read(server) for _ in range(NUM_READERS)]
    until(lambda: server.metric("vllm:num_requests_running") == NUM_READERS * NUM_ANSWERS)
    computed = server.metric("vllm:iteration_tokens_total_sum")
    httpx.post(f"{server.url}/v1/completions", json=others, timeout=60).raise_for_status()
    # By steps and not by the clock: it was answered long before what nobody reads was made.
    assert server.metric("vllm:iteration_tokens_total_sum") - computed < num_asked / 4
    until(lambda: server.metric("vllm:num_requests_running") == 0, 200)  # the engine does not wait for them
    assert server.metric("vllm:kv_cache_usage_perc") == 0
    assert httpx.get(f"{server.url}/load").json() == {"server_load": NUM_READERS}, "their answers fitted into buffers"
    assert resident_bytes(pid) - before < 10 * MIB + num_asked * 512, "a token is 2 KiB where it is kept as it came"
    httpx.post(f"{server.url}/v1/completions", json=others, timeout=60).raise_for_status()
    for reader in readers:
        reader.close()
    until(lambda: httpx.get(f"{server.url}/load").json() == {"server_load": 0})
