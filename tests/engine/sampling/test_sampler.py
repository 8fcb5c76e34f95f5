"""What is drawn follows the distribution that the parameters ask for."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch

from quire_engine.core.randomness import uniform
from quire_engine.core.step import NewSequence
from quire_engine.execution.sampling_state import SamplingState
from quire_engine.memory_plan.plan import SORTED_ROWS
from quire_engine.sampling import sampler
from quire_engine.sampling.sampler import draw, restrict, sample
from quire_engine.sampling_params import SamplingParams

pytestmark = pytest.mark.usefixtures("one_thread")

DRAWS = 4000
VOCAB_SIZE = 40
EOS = 33


def logits_of(vocab_size: int = VOCAB_SIZE, seed: int = 0) -> torch.Tensor:
    return torch.randn(vocab_size, generator=torch.Generator().manual_seed(seed)) * 2


PROMPT = [1, 1, 2, 3, 9, 30]
OUTPUT = [2, 4, 4, 4, 5, 8, 30, 5]


def rewritten(logits: list[float], params: SamplingParams) -> list[float]:
    """Biases, penalties, and what may not come, one token at a time, after `PROMPT` and `OUTPUT`."""
    made = []
    for token, value in enumerate(logits):
        value += (params.logit_bias or {}).get(token, 0.0)
        if token in PROMPT + OUTPUT:
            value = value / params.repetition_penalty if value > 0 else value * params.repetition_penalty
        value -= params.frequency_penalty * OUTPUT.count(token)
        value -= params.presence_penalty * (token in OUTPUT)
        words = [w for w in params.bad_words_token_ids if w[-1] == token]
        bad = any(OUTPUT[len(OUTPUT) - len(w) + 1 :] == w[:-1] for w in words)
        early = len(OUTPUT) < params.min_tokens and token in (*params.stop_token_ids, EOS)
        allowed = params.allowed_token_ids is None or token in params.allowed_token_ids
        made.append(-math.inf if bad or early or not allowed else value)
    return made


def exact(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """The distribution, in plain Python: rewritten logits, temperature, then min-p, then top-k, then top-p."""
    weights = [math.exp(x / params.temperature) for x in rewritten(logits.double().tolist(), params)]
    order = sorted(range(len(weights)), key=lambda i: -weights[i])
    kept = [i for i in order if weights[i] >= params.min_p * weights[order[0]]]
    kept = kept[: params.top_k] if params.top_k > 0 else kept
    total, seen, nucleus = sum(weights[i] for i in kept), 0.0, []
    for i in kept:
        if nucleus and seen >= params.top_p * total:
            break
        nucleus.append(i)
        seen += weights[i]
    return torch.tensor([weights[i] / seen if i in nucleus else 0.0 for i in range(len(weights))], dtype=torch.float64)


def draw_many(logits: torch.Tensor, params: SamplingParams, draws: int = DRAWS) -> torch.Tensor:
    """`draws` tokens of one request, one at each position."""
    state = SamplingState(1, len(logits), (EOS,))
    state.add(0, NewSequence("r", len(PROMPT), params, seed=11, token_ids=PROMPT + OUTPUT))
    first = len(PROMPT + OUTPUT)
    batch = state.batch([0] * draws, [first] * draws)
    numbers = [uniform(11, position) for position in range(first, first + draws)]
    batch.uniform = torch.tensor(numbers, dtype=torch.float64)
    return sample(logits.repeat(draws, 1), batch)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.5),
        SamplingParams(temperature=2.5),
        SamplingParams(top_k=5),
        SamplingParams(top_k=1),
        SamplingParams(top_p=0.7),
        SamplingParams(top_p=0.001),
        SamplingParams(min_p=0.1),
        SamplingParams(temperature=1.7, top_k=20, top_p=0.9, min_p=0.02),
        SamplingParams(temperature=0.8, top_k=3, top_p=0.6),
        SamplingParams(repetition_penalty=1.4),
        SamplingParams(repetition_penalty=0.6, temperature=1.5),
        SamplingParams(presence_penalty=1.2),
        SamplingParams(frequency_penalty=-0.7),
        SamplingParams(presence_penalty=-0.5, frequency_penalty=0.8, repetition_penalty=1.2),
        SamplingParams(logit_bias={2: 2.5, 7: -3.0, 12: 1.0}),
        SamplingParams(logit_bias={2: 2.5, 31: -100.0}, repetition_penalty=1.7, frequency_penalty=0.3),
        SamplingParams(allowed_token_ids=[0, 2, 4, 31, 32, 39]),
        SamplingParams(bad_words_token_ids=[[6], [5, 7], [30, 5, 9], [4, 5, 10], [1, 11]]),
        SamplingParams(min_tokens=9, max_tokens=20, stop_token_ids=[3, 6]),
        SamplingParams(min_tokens=8, max_tokens=20, stop_token_ids=[3, 6]),
        SamplingParams(
            temperature=1.6,
            top_k=12,
            top_p=0.95,
            min_p=0.01,
            presence_penalty=0.4,
            frequency_penalty=0.1,
            repetition_penalty=1.3,
            logit_bias={4: 1.5, 17: 2.0},
            bad_words_token_ids=[[5, 17], [18]],
            allowed_token_ids=list(range(2, 34)),
            min_tokens=10,
            max_tokens=20,
            stop_token_ids=[21],
        ),
    ],
    ids=lambda p: ", ".join(f"{f.name}={getattr(p, f.name)}" for f in fields(p) if getattr(p, f.name) != f.default)[
        :90
    ],
)
def test_tokens_come_as_often_as_they_should(params: SamplingParams) -> None:
    logits = logits_of()
    expected = exact(logits, params)
    counts = torch.bincount(draw_many(logits, params), minlength=VOCAB_SIZE).double()
    assert counts[expected == 0].sum() == 0, "a token came that is excluded"
    likely = expected * DRAWS >= 5
    observed = torch.cat([counts[likely], counts[~likely].sum()[None]])
    wanted = torch.cat([expected[likely], expected[~likely].sum()[None]]) * DRAWS
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    chi_squared = float(((observed - wanted) ** 2 / wanted).sum())
    freedom = len(wanted) - 1
    # Five standard deviations of a chi-squared variable: the draws are fixed by the seed, so this cannot flicker.
    assert chi_squared <= freedom + 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=3.0, top_p=0.95),
        SamplingParams(temperature=3.0, top_k=1500, top_p=0.9),
        SamplingParams(temperature=3.0, top_k=1500),
        SamplingParams(temperature=3.0, top_k=50, top_p=0.9),
        SamplingParams(temperature=3.0, min_p=0.05, top_p=0.99),
    ],
    ids=lambda p: f"k={p.top_k} p={p.top_p} m={p.min_p}",
)
def test_a_large_vocabulary_is_cut_at_the_same_token_as_a_full_sort(params: SamplingParams) -> None:
    logits = logits_of(5000)
    probabilities = torch.softmax(logits.double() / params.temperature, -1)[None].float()
    restrict(
        probabilities,
        torch.tensor([params.top_k or 5000]),
        torch.tensor([params.top_p]),
        torch.tensor([params.min_p]),
    )
    expected = exact(logits, params)
    assert torch.equal(probabilities[0] > 0, expected > 0)
    torch.testing.assert_close((probabilities / probabilities.sum())[0].double(), expected, atol=1e-7, rtol=1e-5)


def test_a_row_draws_the_same_whatever_its_neighbours_ask_for() -> None:
    rows = [
        SamplingParams(temperature=0.0),
        SamplingParams(),
        SamplingParams(top_k=4),
        SamplingParams(top_p=0.5, temperature=1.3),
        SamplingParams(min_p=0.2),
    ]
    state = SamplingState(len(rows), 3000, ())
    for i, params in enumerate(rows):
        state.add(i, NewSequence(str(i), 0, params, seed=i))
    logits = torch.stack([logits_of(3000, seed=i) for i in range(len(rows))])
    together = sample(logits.clone(), state.batch(list(range(len(rows))), [7] * len(rows)))
    alone = [sample(logits[i : i + 1].clone(), state.batch([i], [7])) for i in range(len(rows))]
    assert together.tolist() == torch.cat(alone).tolist()
    assert together[0] == logits[0].argmax()


@pytest.mark.parametrize("top_k", [0, 50, 2000], ids=["all", "few", "many"])
def test_the_likeliest_is_drawn_where_top_p_is_less_than_any_float32(top_k: int) -> None:
    params, logits = SamplingParams(top_p=1e-46, top_k=top_k), logits_of(3000)
    assert draw_many(logits, params, draws=5).tolist() == [logits.argmax()] * 5


def test_the_ends_of_the_unit_interval_draw_tokens_that_can_come() -> None:
    weights = torch.tensor([[0.0, 0.3, 0.0, 0.7, 0.0]] * 2)
    assert draw(weights, torch.tensor([0.0, 1.0 - 2.0**-53], dtype=torch.float64)).tolist() == [1, 3]


def test_uniform_numbers_depend_on_seed_and_position_and_fill_the_interval() -> None:
    numbers = [uniform(seed, position) for seed in range(40) for position in range(100)]
    assert len(set(numbers)) == 4000
    assert all(0.0 <= n < 1.0 for n in numbers)
    buckets = [sum(int(n * 20) == b for n in numbers) for b in range(20)]
    assert sum((b - 200) ** 2 / 200 for b in buckets) < 19 + 5 * math.sqrt(38)
    assert uniform(-1, 0) == uniform(2**64 - 1, 0)


def test_tokens_that_end_an_answer_wait_for_min_tokens() -> None:
    logits = torch.zeros(1, 8)
    logits[0, 3], logits[0, 5] = 9.0, 8.0
    state = SamplingState(1, 8, eos_token_ids=(3,))
    state.add(0, NewSequence("r", 4, SamplingParams(temperature=0.0, min_tokens=2, stop_token_ids=[5]), seed=0))
    at = [sample(logits.clone(), state.batch([0], [n])).item() for n in (4, 5, 6)]
    assert at[0] not in (3, 5)
    assert at[1] not in (3, 5)
    assert at[2] == 3


def test_of_many_flat_rows_a_few_are_looked_at_whole_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    together = []
    real = sampler._threshold_of_all
    monkeypatch.setattr(sampler, "_threshold_of_all", lambda *a: together.append(len(a[0])) or real(*a))
    flat = torch.softmax(torch.stack([logits_of(3000, seed) for seed in range(40)]) / 50, dim=-1)
    limits = torch.full((40,), 2000), torch.linspace(0.5, 0.99, 40), None
    cut, alone = flat.clone(), flat.clone()
    restrict(cut, *limits)
    assert sum(together) == 40
    assert max(together) <= SORTED_ROWS
    for row in range(40):
        restrict(alone[row : row + 1], limits[0][row : row + 1], limits[1][row : row + 1], None)
    assert torch.equal(cut, alone)
    assert ((cut > 0).sum(-1) > 1024).any()
