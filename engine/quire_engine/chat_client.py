"""A chat in the terminal with any OpenAI-compatible server, on the standard library alone."""

from __future__ import annotations

import contextlib
import http.client
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple


def run_chat(url: str, model: str | None, api_key: str | None, message: str | None) -> int:
    """Ask and answer until the end of input, or once when `message` is given.

    What fails is said, and the conversation goes on from before it. Returns the exit status: 1 where something did.
    """
    server, status = _Server(url, api_key), 0
    messages: list[dict[str, str]] = []
    try:
        model = model or server.first_model()
        for asked in [message] if message else _typed():
            wish = [*messages, {"role": "user", "content": asked}]
            try:
                messages = [*wish, {"role": "assistant", "content": _show(server.stream(model, wish))}]
            except _ServerError as error:
                status = _complain(error)
    except _ServerError as error:
        status = _complain(error)
    except KeyboardInterrupt:
        sys.stdout.write("\n")
    return status


def _complain(error: _ServerError) -> int:
    sys.stderr.write(f"quire-engine chat: {error}\n")
    return 1


def _show(pieces: Iterable[_Piece]) -> str:
    """Write an answer as it comes: what the model thinks to standard error, dimmed on a terminal. Returns the rest."""
    dim, plain = ("\x1b[2m", "\x1b[0m") if sys.stderr.isatty() else ("", "")
    thought, thinking, said = False, False, ""
    try:
        for piece in pieces:
            if piece.thought:
                sys.stderr.write(f"{dim}{'' if thinking else 'thinking: '}{piece.thought}{plain}")
                sys.stderr.flush()
                thought = thinking = True
            if piece.said:
                if thinking:
                    sys.stderr.write("\n")
                    thinking = False
                sys.stdout.write(piece.said)
                sys.stdout.flush()
                said += piece.said
    finally:
        if thinking:
            sys.stderr.write("\n")
    if thought and not said:
        sys.stderr.write("(no answer: all its tokens went into thinking)\n")
    sys.stdout.write("\n")
    return said


class _Piece(NamedTuple):
    thought: str
    said: str


class _ServerError(Exception):
    pass


class _Server:
    def __init__(self, url: str, api_key: str | None) -> None:
        self._base = (url if "://" in url else f"http://{url}").rstrip("/").removesuffix("/v1")
        self._headers = {"content-type": "application/json"}
        if api_key:
            self._headers["authorization"] = f"Bearer {api_key}"

    def first_model(self) -> str:
        try:
            with self._open("/v1/models") as answer:
                return str(json.load(answer)["data"][0]["id"])
        except (ValueError, LookupError, TypeError) as error:
            raise _ServerError(f"{self._base}/v1/models lists no model: is it the server of one?") from error

    def stream(self, model: str, messages: list[dict[str, str]]) -> Iterator[_Piece]:
        body = {"model": model, "messages": messages, "stream": True}
        with self._open("/v1/chat/completions", json.dumps(body).encode()) as answer:
            for data in self._events(answer):
                event = json.loads(data)
                if "error" in event:
                    raise _ServerError(event["error"]["message"])
                for choice in event["choices"]:
                    delta = choice["delta"]
                    thought = delta.get("reasoning") or delta.get("reasoning_content")
                    yield _Piece(thought or "", delta.get("content") or "")

    def _events(self, answer: Iterable[bytes]) -> Iterator[str]:
        with contextlib.suppress(OSError, http.client.HTTPException):
            for line in answer:
                data = line.decode().strip().removeprefix("data: ")
                if data == "[DONE]":
                    return
                if data:
                    yield data
        raise _ServerError(f"{self._base} broke off before the end of its answer")

    def _open(self, path: str, body: bytes | None = None) -> Any:
        try:
            request = urllib.request.Request(self._base + path, body, self._headers)
            return urllib.request.urlopen(request, timeout=600)
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            with contextlib.suppress(ValueError, KeyError, TypeError):
                text = json.loads(text)["error"]["message"]
            raise _ServerError(f"{self._base}{path} answered {error.code}: {text}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            cause = getattr(error, "reason", error)
            hint = "is a server running there?" if isinstance(cause, OSError) else "is it http://HOST:PORT?"
            said = getattr(cause, "strerror", None) or cause
            raise _ServerError(f"{self._base} cannot be reached: {said}: {hint}") from error


def _typed() -> Iterator[str]:
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            return
        if text:
            yield text
