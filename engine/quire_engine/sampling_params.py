"""What a request asks of the sampler. Plain data: it crosses the socket between server and engine."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from quire_engine.structured_outputs import StructuredOutputsParams

MAX_N = 128
MAX_STOP = 16
MAX_LOGPROBS = 256
MAX_LOGIT_BIAS = 1024
MAX_BAD_WORDS = 1024
MAX_BAD_WORD = 256  # characters
MAX_LENGTH_PENALTY = 10.0

EarlyStopping = bool | Literal["never"]


@dataclass(kw_only=True)
class SamplingParams:
    """How to choose the tokens of one request. Names and defaults are vLLM's.

    In this order: biases are added; the repetition penalty divides positive logits of tokens in the prompt or the
    output, and multiplies negative ones; the frequency penalty is subtracted for each time that a token is in the
    output, the presence penalty once; bad words and, before `min_tokens`, ends are forbidden; only
    `allowed_token_ids` are left; temperature divides; min-p, top-k and top-p cut off.

    `bad_words` are tokenized by whoever has the tokenizer, into `bad_words_token_ids`.
    `best_of` answers are made and the `n` with the highest sum of logprobs are kept; None makes `n`.
    `temperature == 0` is greedy. `top_k` of 0 or -1 means all tokens. `max_tokens=None` runs up to the
    model's context. `logprobs` and `prompt_logprobs` ask for the logarithms of the model's own probabilities: of
    each token and of so many of the likeliest at its place; 0 gives the token's alone, None gives none.
    `use_beam_search` looks for the likeliest answers instead of sampling: with `num_sequences` beams, of which the `n`
    with the best sum of logprobs / length ** `length_penalty` are given out once the search ends, as `early_stopping`
    says (see `core.beam_search`). What shapes sampling then has no effect, and what changes logits is refused.
    `structured_outputs` is the form that the answer is held to, beams as well.
    Raises `ValueError` that names the field, the value and the limit.
    """

    n: int = 1
    best_of: int | None = None
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
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] = field(default_factory=list)
    bad_words_token_ids: list[list[int]] = field(default_factory=list)
    structured_outputs: StructuredOutputsParams | None = None
    use_beam_search: bool = False
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            self.stop = [self.stop]
        self.stop = list(self.stop or [])
        self.stop_token_ids = list(self.stop_token_ids or [])
        self.bad_words = list(self.bad_words or [])
        self._check_answers()
        self._check_numbers()
        self._check_words()
        self._check_token_ids()
        self._check_beams()

    def _check_answers(self) -> None:
        _check("n", self.n, 1 <= self.n <= MAX_N, f"between 1 and {MAX_N}")
        _check("max_tokens", self.max_tokens, self.max_tokens is None or self.max_tokens >= 1, "at least 1")
        _check("min_tokens", self.min_tokens, self.min_tokens >= 0, "at least 0")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens is {self.min_tokens}: it must be at most max_tokens, {self.max_tokens}")
        if self.best_of is not None:
            _check("best_of", self.best_of, self.n <= self.best_of <= MAX_N, f"between n, {self.n}, and {MAX_N}")
        if self.seed is not None:
            _check("seed", self.seed, -(2**63) <= self.seed < 2**63, "a 64-bit integer")

    def _check_numbers(self) -> None:
        _check("temperature", self.temperature, 0.0 <= self.temperature <= 100.0, "between 0 and 100")
        _check("top_p", self.top_p, 0.0 < self.top_p <= 1.0, "above 0 and at most 1")
        _check("top_k", self.top_k, -1 <= self.top_k < 2**63, "0 or -1 for all tokens, else at least 1 and 64-bit")
        _check("min_p", self.min_p, 0.0 <= self.min_p <= 1.0, "between 0 and 1")
        for name in ("logprobs", "prompt_logprobs"):
            count = getattr(self, name)
            _check(name, count, count is None or 0 <= count <= MAX_LOGPROBS, f"between 0 and {MAX_LOGPROBS}")
        for name in ("presence_penalty", "frequency_penalty"):
            penalty = getattr(self, name)
            _check(name, penalty, -2.0 <= penalty <= 2.0, "between -2 and 2")
        repetition = self.repetition_penalty
        _check("repetition_penalty", repetition, 0.01 <= repetition <= 100.0, "between 0.01 and 100")

    def _check_words(self) -> None:
        if len(self.stop) > MAX_STOP:
            raise ValueError(f"stop holds {len(self.stop)} strings: it may hold at most {MAX_STOP}")
        if any(not isinstance(s, str) or not s for s in self.stop):
            raise ValueError("stop holds an empty string: every stop string needs at least one character")
        words = len(self.bad_words)
        if words > MAX_BAD_WORDS:
            raise ValueError(f"bad_words holds {words} words: it must be at most {MAX_BAD_WORDS}")
        for word in self.bad_words:
            if not isinstance(word, str) or not word.strip() or len(word) > MAX_BAD_WORD:
                raise ValueError(
                    f"bad_words holds {word!r:.40}: each word must have 1 to {MAX_BAD_WORD} characters, not all spaces"
                )

    def _check_token_ids(self) -> None:
        """Whether the model has them only the engine knows."""
        biases = self.logit_bias or {}
        if len(biases) > MAX_LOGIT_BIAS:
            raise ValueError(f"logit_bias holds {len(biases)} tokens: it must be at most {MAX_LOGIT_BIAS}")
        for token, bias in biases.items():
            if not isinstance(token, int):
                raise ValueError(f"logit_bias has the key {token!r}: it must be a token id")
            if not -100.0 <= bias <= 100.0:
                raise ValueError(f"logit_bias of token {token} is {bias}: it must be between -100 and 100")
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise ValueError("allowed_token_ids is empty: name at least one token, or leave it out")

    def _check_beams(self) -> None:
        penalty, early = self.length_penalty, self.early_stopping
        reach = f"between -{MAX_LENGTH_PENALTY:g} and {MAX_LENGTH_PENALTY:g}"
        _check("length_penalty", penalty, -MAX_LENGTH_PENALTY <= penalty <= MAX_LENGTH_PENALTY, reach)
        if early not in (True, False, "never"):
            raise ValueError(f"early_stopping is {early!r}: it must be true, false or never")
        if not self.use_beam_search:
            return
        plain = SamplingParams()
        for name in NOT_WITH_BEAMS:
            if getattr(self, name) != getattr(plain, name):
                raise ValueError(f"{name} does not work with use_beam_search: leave one of them out")

    def children(self) -> list[SamplingParams]:
        """The parameters of the engine's requests: one for each answer, but one alone for a beam search."""
        return [self] if self.use_beam_search else [self.child(i) for i in range(self.num_sequences)]

    def child(self, index: int) -> SamplingParams:
        """The parameters of one answer among `num_sequences`."""
        chooses = self.num_sequences > self.n
        return replace(
            self,
            n=1,
            best_of=None,
            seed=self.seed_of(index),
            logprobs=0 if chooses and self.logprobs is None else self.logprobs,
            prompt_logprobs=self.prompt_logprobs if index == 0 else None,
        )

    def seed_of(self, child: int) -> int | None:
        """The seed of one of the `n` answers: `seed + child` in 64 bits, where the lowest follows the highest."""
        return None if self.seed is None else (self.seed + child + 2**63) % 2**64 - 2**63

    @property
    def looks_back(self) -> bool:
        """Whether an executor has to know tokens that it does not compute, such as those found in a cache."""
        return self.penalized or bool(self.bad_words_token_ids) or self.prompt_logprobs is not None

    @property
    def needs_tokens(self) -> bool:
        """Whether who chooses a token has to know those before it, or more than a token comes of a step."""
        told = self.logprobs is not None or self.use_beam_search
        return told or self.looks_back or self.structured_outputs is not None

    @property
    def penalized(self) -> bool:
        return (self.presence_penalty, self.frequency_penalty, self.repetition_penalty) != (0.0, 0.0, 1.0)

    @property
    def num_sequences(self) -> int:
        """How many answers are made, of which `n` are kept."""
        return self.n if self.best_of is None else self.best_of

    @property
    def num_answers(self) -> int:
        """How many answers the engine gives: a beam search keeps the others to itself."""
        return self.n if self.use_beam_search else self.num_sequences

    @property
    def greedy(self) -> bool:
        return self.temperature < 1e-5


NOT_WITH_BEAMS = (
    "logprobs",
    "prompt_logprobs",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "allowed_token_ids",
    "bad_words",
    "bad_words_token_ids",
)


@dataclass(kw_only=True)
class BeamSearchParams:
    """What `LLM.beam_search` looks for. Names and defaults are vLLM's, `early_stopping` is transformers'.

    Nothing is sampled: `temperature` is there for scripts that set it to 0 or 1, and refused otherwise.
    """

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0
    include_stop_str_in_output: bool = False
    early_stopping: EarlyStopping = False

    def __post_init__(self) -> None:
        _check("beam_width", self.beam_width, 1 <= self.beam_width <= MAX_N, f"between 1 and {MAX_N}")
        _check("temperature", self.temperature, self.temperature in (0.0, 1.0), "0 or 1: beam search does not sample")

    def as_sampling_params(self) -> SamplingParams:
        return SamplingParams(
            n=self.beam_width,
            use_beam_search=True,
            max_tokens=self.max_tokens,
            ignore_eos=self.ignore_eos,
            temperature=0.0,
            length_penalty=self.length_penalty,
            early_stopping=self.early_stopping,
            include_stop_str_in_output=self.include_stop_str_in_output,
        )


def _check(name: str, value: float | None, ok: bool, wanted: str) -> None:
    if value is not None and isinstance(value, float) and not math.isfinite(value):
        ok = False
    if not ok:
        raise ValueError(f"{name} is {value}: it must be {wanted}")
