"""`quire-engine chat`, against a real server and against what is none."""

from __future__ import annotations

import http.server
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from tests.engine.server.conftest import Server, free_port


def chat(url: str, *arguments: str, typed: str | None = None) -> subprocess.CompletedProcess[str]:
    """One message, or the lines that are typed."""
    words = ["--message", "What is a class?"] if typed is None else []
    command = [sys.executable, "-m", "quire_engine.cli", "chat", url, *words, *arguments]
    return subprocess.run(command, input=typed, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("form", ["http://127.0.0.1:{port}", "http://127.0.0.1:{port}/v1/", "127.0.0.1:{port}"])
def test_each_way_to_write_the_address_gets_an_answer(server: Server, form: str) -> None:
    result = chat(form.format(port=server.port))
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_a_model_that_is_not_served_is_named_with_those_that_are(server: Server) -> None:
    result = chat(server.url, "--model", "huge")
    assert result.returncode == 1
    assert "'huge' is not served here: use tiny" in result.stderr


def test_a_server_that_does_not_run_is_one_line() -> None:
    result = chat(f"http://127.0.0.1:{(port := free_port())}")
    refused = f"http://127.0.0.1:{port} cannot be reached: Connection refused: is a server running there?"
    assert result.stderr == f"quire-engine chat: {refused}\n"
    assert result.returncode == 1


@pytest.fixture
def answer(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a socket that gives the parameter's bytes to every connection, and closes it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(request.param)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


_EVENT = b'data: {"choices": [{"delta": {"content": "A"}}]}\n\n'
_CUT = [
    b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n%b" % _EVENT,
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(_EVENT), _EVENT),
]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n<html></html>", "lists no model"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "cannot be reached"),
    ],
    indirect=["answer"],
)
def test_what_is_no_server_of_a_model_is_said_to_be_none(answer: str, words: str) -> None:
    result = chat(answer)
    assert (result.returncode, result.stdout) == (1, "")
    assert words in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("answer", _CUT, indirect=True)
def test_an_answer_that_breaks_off_is_no_success(answer: str) -> None:
    result = chat(answer, "--model", "tiny")
    assert (result.returncode, result.stdout) == (1, "A")
    assert result.stderr.strip().endswith("broke off before the end of its answer")


@pytest.fixture
def listener() -> Iterator[tuple[str, list[list[str]]]]:
    """The address of a server that answers with "A", or to "too much" with an error, and what each message was."""
    heard: list[list[str]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            heard.append([message["content"] for message in asked["messages"]])
            good, body = heard[-1][-1] != "too much", b'{"error": {"message": "no room"}}'
            if good:
                body = _EVENT + b"data: [DONE]\n\n"
            self.send_response(200 if good else 400)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as answering:
        threading.Thread(target=answering.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{answering.server_port}", heard
        answering.shutdown()


def test_a_conversation_is_kept_from_line_to_line(listener: tuple[str, list[list[str]]]) -> None:
    url, heard = listener
    result = chat(url, "--model=tiny", typed="Hello!\n\nAnd now?\n")
    assert result.returncode == 0, result.stderr
    assert heard == [["Hello!"], ["Hello!", "A", "And now?"]]


def test_an_error_is_said_and_the_conversation_goes_on_from_before_it(listener: tuple[str, list[list[str]]]) -> None:
    url, heard = listener
    result = chat(url, "--model=tiny", typed="Hello!\ntoo much\nAnd now?\n")
    assert (result.returncode, result.stderr.count("answered 400: no room")) == (1, 1)
    assert heard[-1] == ["Hello!", "A", "And now?"]


@pytest.fixture
def thinker(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a server that streams the parameter's deltas, whatever it is asked."""
    events = [f"data: {json.dumps({'choices': [{'delta': delta}]})}\n\n" for delta in request.param]
    body = "".join([*events, "data: [DONE]\n\n"]).encode()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listener.server_port}"
        listener.shutdown()


_THOUGHTS = [{"reasoning": "Hm, "}, {"reasoning_content": "well."}]


@pytest.mark.parametrize(
    ("thinker", "said", "thought"),
    [
        ([*_THOUGHTS, {"content": "A"}, {"content": "B"}], "AB\n", "thinking: Hm, well.\n"),
        (_THOUGHTS, "\n", "thinking: Hm, well.\n(no answer: all its tokens went into thinking)\n"),
        ([{"content": "A", "reasoning": None}], "A\n", ""),
    ],
    indirect=["thinker"],
)
def test_what_a_model_thinks_is_shown_beside_its_answer(thinker: str, said: str, thought: str) -> None:
    result = chat(thinker, "--model", "tiny")
    assert (result.returncode, result.stdout, result.stderr) == (0, said, thought)
