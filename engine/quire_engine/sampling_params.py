"""What a request asks of the sampler. Plain data: it crosses the socket between server and engine."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

MAX_N = 128
MAX_STOP = 16
MAX_LOGPROBS = 256


@dataclass(kw_only=True)
class SamplingParams:
    """How to choose the tokens of one request. Names and defaults are vLLM's.

    `temperature == 0` is greedy. `top_k` of 0 or -1 means all tokens. `max_tokens=None` runs up to the
    model's context. `logprobs` and `prompt_logprobs` ask for the logarithms of the model's own probabilities: of
    each token and of so many of the likeliest at its place; 0 gives the token's alone, None gives none.
    Raises `ValueError` that names the field, the value and the limit.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: list[str] = field(default_factory=list)
    stop_token_ids: list[int] = field(default_factory=list)
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    skip_special_tokens: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            self.stop = [self.stop]
        self.stop = list(self.stop or [])
        self.stop_token_ids = list(self.stop_token_ids or [])
        _check("n", self.n, 1 <= self.n <= MAX_N, f"between 1 and {MAX_N}")
        _check("temperature", self.temperature, 0.0 <= self.temperature <= 100.0, "between 0 and 100")
        _check("top_p", self.top_p, 0.0 < self.top_p <= 1.0, "above 0 and at most 1")
        _check("top_k", self.top_k, -1 <= self.top_k < 2**63, "0 or -1 for all tokens, else at least 1 and 64-bit")
        _check("min_p", self.min_p, 0.0 <= self.min_p <= 1.0, "between 0 and 1")
        _check("max_tokens", self.max_tokens, self.max_tokens is None or self.max_tokens >= 1, "at least 1")
        _check("min_tokens", self.min_tokens, self.min_tokens >= 0, "at least 0")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens is {self.min_tokens}: it must be at most max_tokens, {self.max_tokens}")
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            _check(name, value, value is None or 0 <= value <= MAX_LOGPROBS, f"between 0 and {MAX_LOGPROBS}")
        _check("stop", len(self.stop), len(self.stop) <= MAX_STOP, f"at most {MAX_STOP} strings")
        if any(not isinstance(s, str) or not s for s in self.stop):
            raise ValueError("stop holds an empty string: every stop string needs at least one character")
        if self.seed is not None:
            _check("seed", self.seed, -(2**63) <= self.seed < 2**63, "a 64-bit integer")

    def seed_of(self, child: int) -> int | None:
        """The seed of one of the `n` answers: `seed + child` in 64 bits, where the lowest follows the highest."""
        return None if self.seed is None else (self.seed + child + 2**63) % 2**64 - 2**63

    @property
    def looks_back(self) -> bool:
        """Whether an executor has to know tokens that it does not compute, such as those found in a cache."""
        return self.prompt_logprobs is not None

    @property
    def greedy(self) -> bool:
        return self.temperature < 1e-5


def _check(name: str, value: float | None, ok: bool, wanted: str) -> None:
    if value is not None and isinstance(value, float) and not math.isfinite(value):
        ok = False
    if not ok:
        raise ValueError(f"{name} is {value}: it must be {wanted}")
