"""Clients that ask without pause: each keeps its connections open and never retries, as strict as a client can be."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import openai
from openai.types.chat import ChatCompletionMessageParam

from e2e.llmservice import LLMService

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello! Who are you?"}]


@dataclass
class Load:
    """`clients` threads that chat until `stop()`; half of their requests stream."""

    service: LLMService
    clients: int
    max_tokens: int = 40
    answered: int = 0
    failures: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Load:
        for number in range(self.clients):
            thread = threading.Thread(target=self._run, args=(self.service.client(), number), daemon=True)
            self._threads.append(thread)
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(180)
            assert not thread.is_alive(), "a client hangs"

    def _run(self, client: openai.OpenAI, number: int) -> None:
        turn = number
        while not self._stop.is_set():
            turn += 1
            try:
                finish_reason = self._stream(client) if turn % 2 else self._ask(client)
                failure = None if finish_reason in ("stop", "length") else f"finish_reason {finish_reason}"
            except openai.OpenAIError as error:
                failure = f"{type(error).__name__}: {error} ({error.__cause__!r})"
            with self._lock:
                self.answered += 1
                if failure is not None:
                    self.failures.append(failure)

    def _ask(self, client: openai.OpenAI) -> str | None:
        answer = client.chat.completions.create(
            model="tiny",
            messages=MESSAGES,
            max_tokens=self.max_tokens,
            extra_body={"ignore_eos": True},
        )
        return answer.choices[0].finish_reason

    def _stream(self, client: openai.OpenAI) -> str | None:
        finish_reason = None
        stream = client.chat.completions.create(
            model="tiny", messages=MESSAGES, max_tokens=self.max_tokens, stream=True, extra_body={"ignore_eos": True}
        )
        for chunk in stream:
            finish_reason = chunk.choices[0].finish_reason
        return finish_reason


class LongStream:
    """One streamed answer of `max_tokens` tokens, read in the background."""

    def __init__(self, service: LLMService, max_tokens: int) -> None:
        self.text = ""
        self.finish_reason: str | None = None
        self.failure: str | None = None
        self._client = service.client()
        self._thread = threading.Thread(target=self._run, args=(max_tokens,), daemon=True)
        self._thread.start()

    def _run(self, max_tokens: int) -> None:
        try:
            for chunk in self._client.completions.create(
                model="tiny", prompt="Return", max_tokens=max_tokens, stream=True, extra_body={"ignore_eos": True}
            ):
                self.text += chunk.choices[0].text
                self.finish_reason = chunk.choices[0].finish_reason
        except openai.OpenAIError as error:
            self.failure = f"{type(error).__name__}: {error}"

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "the stream has not ended"
