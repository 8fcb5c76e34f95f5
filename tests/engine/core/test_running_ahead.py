"""Steps that are under way before the tokens of the step before them are known."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from quire_engine.core.loop import EngineCore
from quire_engine.core.messages import EngineOutput, EngineRequest
from quire_engine.core.rotation import RotationByLength
from quire_engine.core.step import LATEST, Step
from quire_engine.core.step_profile import StepProfile
from quire_engine.sampling_params import SamplingParams
from tests.engine.core.fake_model import POISON, VOCAB_SIZE, PagedExecutor, Stages, generate
from tests.engine.core.test_grammars import FORM, Grammar, Shelf
from tests.engine.core.test_loop import CONFIG, request, run, tokens

AHEAD = replace(CONFIG, runs_ahead=True)


def make_core(*grammars: Grammar, poison: bool = False, **changes: object) -> tuple[EngineCore, PagedExecutor, Stages]:
    config = replace(AHEAD, **changes)  # type: ignore[arg-type]  # mixed values
    executor = PagedExecutor(config, poison=poison)
    stages = Stages(executor, 2)
    return EngineCore(stages, config, Shelf(list(grammars))), executor, stages


def fed_back(step: Step) -> list[str]:
    """The requests of a step whose token is not known."""
    return [s.request_id for s in step.scheduled if LATEST in s.token_ids]


def prompt_until(end: int, length: int) -> list[int]:
    """A prompt whose answer has its first `end` after `length` tokens."""
    for seed in range(10_000):
        rng = random.Random(seed)
        prompt = [rng.randrange(VOCAB_SIZE) for _ in range(5)]
        answer = generate(prompt, length)
        if end in answer and answer.index(end) == length - 1:
            return prompt
    raise AssertionError("none was found")


def test_the_next_step_is_submitted_before_the_tokens_of_this_one_are_known() -> None:
    core, executor, stages = make_core()
    core.add_request(request("a", [1, 2, 3], max_tokens=6))
    core.step()
    assert stages.num_in_flight == 1
    assert tokens(run(core)["a"]) == generate([1, 2, 3], 6)[1:]
    assert [fed_back(step) for step in executor.steps] == [[]] + [["a"]] * 5
    assert stages.most_in_flight == 2


def test_an_answer_whose_length_is_known_computes_no_token_too_many() -> None:
    core, executor, _ = make_core()
    core.add_request(request("a", [1, 2, 3], max_tokens=6))
    run(core)
    assert sum(step.num_tokens for step in executor.steps) == 3 + 5


def test_of_an_answer_that_ends_sooner_one_token_too_many_is_computed_and_nobody_hears_of_it() -> None:
    prompt = prompt_until(11, 4)
    core, executor, _ = make_core(eos_token_ids=(11,))
    core.add_request(request("a", prompt, max_tokens=20, ignore_eos=False))
    outputs = run(core)["a"]
    assert tokens(outputs) == generate(prompt, 4)
    assert [o.finish_reason for o in outputs] == [None] * 3 + ["stop"]
    assert sum(step.num_tokens for step in executor.steps) == 5 + 3 + 1
    assert core.stats().kv_cache_usage == 0.0


def test_blocks_of_an_answer_that_has_ended_go_to_others_while_its_last_step_is_under_way() -> None:
    """In a pool with room for one request alone, and what that wrote too late is written over."""
    prompt = prompt_until(11, 4)
    core, _, _ = make_core(eos_token_ids=(11,), num_blocks=4, enable_prefix_caching=False)
    names = [str(i) for i in range(6)]
    for name in names:
        core.add_request(request(name, prompt, max_tokens=10, ignore_eos=False))
    found = run(core)
    assert [tokens(found[name]) for name in names] == [generate(prompt, 4)] * 6


def test_a_name_may_come_again_while_a_step_of_the_request_that_had_it_is_under_way() -> None:
    core, _, stages = make_core()
    core.add_request(request("a", [1, 2, 3], max_tokens=20))
    core.step()
    core.abort(["a"])
    assert stages.num_in_flight == 1
    core.add_request(request("a", [4, 5, 6], max_tokens=5))
    assert tokens(run(core)["a"]) == generate([4, 5, 6], 5)


@pytest.mark.parametrize(
    "params",
    [{"structured_outputs": FORM}, {"logprobs": 1}, {"presence_penalty": 1.0}, {"bad_words_token_ids": [[1, 2]]}],
    ids=str,
)
def test_beside_a_request_that_needs_its_tokens_every_step_waits_for_the_one_before(params: dict[str, object]) -> None:
    core, executor, _ = make_core(Grammar())
    core.add_request(request("free", [1, 2, 3], max_tokens=20))
    core.step()
    core.add_request(request("needs", [4, 5], max_tokens=4, **params))
    found = run(core)
    assert tokens(found["free"]) == generate([1, 2, 3], 20)[1:]
    assert tokens(found["needs"]) == generate([4, 5], 4)
    with_it = [step for step in executor.steps if "needs" in {s.request_id for s in step.scheduled}]
    assert len(with_it) == 4
    assert [fed_back(step) for step in with_it] == [["free"], [], [], []]  # the first one came on top of another
    assert fed_back(executor.steps[-1]) == ["free"]


def test_who_gives_way_has_all_of_its_tokens_first() -> None:
    core, executor, _ = make_core(num_blocks=8, enable_prefix_caching=False)
    names = [str(i) for i in range(5)]
    for name in names:
        core.add_request(request(name, [int(name)] * 4, max_tokens=16))
    found = run(core)
    assert core.stats().num_preemptions > 0
    assert [tokens(found[name]) for name in names] == [generate([int(name)] * 4, 16) for name in names]
    assert all(LATEST not in new.token_ids for step in executor.steps for new in step.new)


def test_a_higher_priority_is_let_in_by_requests_that_are_always_under_way() -> None:
    core, _, _ = make_core(max_num_seqs=1, use_priority=True)
    core.add_request(request("low", [1, 2, 3], priority=1, max_tokens=30))
    core.step()
    core.add_request(request("high", [4, 5, 6], priority=0, max_tokens=3))
    ends = [o.request_id for outputs in iter_steps(core) for o in outputs if o.finish_reason]
    assert ends == ["high", "low"]


def iter_steps(core: EngineCore) -> list[list[EngineOutput]]:
    found = []
    while core.has_work():
        found.append(core.step())
        core.check_integrity()
    return found


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_a_request_that_grows_out_of_its_rotation_begins_again_with_all_of_its_tokens(kind: str) -> None:
    core, executor, _ = make_core(rotation=RotationByLength(kind, 9))  # type: ignore[arg-type]  # one of both
    core.add_request(request("a", [1, 2, 3], max_tokens=20))
    assert tokens(run(core)["a"]) == generate([1, 2, 3], 20)
    begun = [s.start for step in executor.steps for s in step.scheduled if s.start == 0]
    assert len(begun) == (2 if kind == "longrope" else 1)


def test_blocks_are_found_by_others_as_soon_as_all_of_their_tokens_are_known() -> None:
    """An answer's last step fills a block: who goes on with the conversation finds it as in the plain loop."""
    hits = []
    for ahead in (False, True):
        core, _, _ = make_core(runs_ahead=ahead)
        core.add_request(request("a", [1, 2, 3], max_tokens=14))
        run(core)
        conversation = [1, 2, 3, *generate([1, 2, 3], 14)]
        core.add_request(request("b", [*conversation, 7], max_tokens=2))
        assert tokens(run(core)["b"]) == generate([*conversation, 7], 2)
        hits.append(core.stats().prefix_cache_hits)
    assert hits == [16, 16]


def test_a_request_whose_logits_were_not_finite_ends_though_it_has_gone_on() -> None:
    core, _, _ = make_core(poison=True)
    core.add_request(request("bad", [1, POISON, 3], max_tokens=8))
    core.add_request(request("good", [1, 2, 3], max_tokens=8))
    found = run(core)
    assert [o.error_kind for o in found["bad"]] == ["fault"]
    assert tokens(found["good"]) == generate([1, 2, 3], 8)
    core.add_request(request("again", [1] * 40, max_tokens=8))
    assert tokens(run(core)["again"]) == generate([1] * 40, 8)


def test_what_a_request_was_shown_to_have_computed_soundly_is_not_cleared() -> None:
    prompt = prompt_until(11, 4)
    core, executor, _ = make_core(eos_token_ids=(11,), num_blocks=4, enable_prefix_caching=False)
    for name in "ab":
        core.add_request(request(name, prompt, max_tokens=10, ignore_eos=False))
    run(core)
    # 5 + 4 tokens in 3 blocks, of which a step that nobody has seen the result of wrote to the last one.
    assert [len(step.cleared) for step in executor.steps if step.cleared] == [1]


def test_siblings_begin_beside_each_other_and_run_ahead() -> None:
    core, executor, _ = make_core()
    first = request("0", [1, 2, 3, 4, 5], max_tokens=6)
    core.add_request(first)
    for name in "123":
        core.add_request(first.another(name, SamplingParams(ignore_eos=True, max_tokens=6)))
    found = run(core)
    assert [tokens(found[name]) for name in "0123"] == [generate([1, 2, 3, 4, 5], 6)] * 4
    assert sum(step.num_tokens for step in executor.steps) == 5 + 4 * 5


def mixed(seed: int) -> list[EngineRequest]:
    rng = random.Random(seed)
    made: list[EngineRequest] = []
    for i in range(40):
        prompt = [1] * rng.randrange(12) + [rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(1, 6))]
        kind = rng.random()
        params = SamplingParams(
            max_tokens=rng.randint(1, 14),
            ignore_eos=rng.random() < 0.5,
            logprobs=1 if kind < 0.1 else None,
            use_beam_search=kind > 0.95,
            n=2 if kind > 0.95 else 1,
            structured_outputs=FORM if 0.1 < kind < 0.2 else None,
        )
        made.append(EngineRequest(str(i), prompt, params, priority=rng.randrange(2)))
    return made


def streams(seed: int, *, ahead: bool) -> dict[str, list[tuple[list[int], str | None]]]:
    """What each request heard, turn by turn, of arrivals in bunches over a pool that is too small."""
    rng = random.Random(seed)
    core, executor, _ = make_core(
        *(Grammar(rng.randint(1, 9)) for _ in range(40)),
        runs_ahead=ahead,
        num_blocks=rng.randint(12, 24),
        num_swap_blocks=rng.choice([0, 20]),
        eos_token_ids=(11, 12),
        use_priority=rng.random() < 0.3,
    )
    waiting, heard = mixed(seed)[::-1], dict[str, list[tuple[list[int], str | None]]]()
    while waiting or core.has_work():
        for _ in range(rng.randrange(4)):
            if waiting:
                core.add_request(waiting.pop())
        for output in core.step() if core.has_work() else []:
            said = output.beams[0].token_ids if output.beams else output.new_token_ids
            heard.setdefault(output.request_id, []).append((said, output.finish_reason))
        core.check_integrity()
    assert any(fed_back(step) for step in executor.steps) == ahead
    assert core.stats().kv_cache_usage == 0.0
    return heard


@pytest.mark.parametrize("seed", range(12))
def test_every_stream_is_that_of_the_plain_loop(seed: int) -> None:
    assert streams(seed, ahead=True) == streams(seed, ahead=False)


def test_steps_that_overlap_are_timed_one_by_one() -> None:
    core, _, _ = make_core()
    core.profile = StepProfile(4)
    core.add_request(request("a", [1, 2, 3], max_tokens=6))
    tables: list[str] = []
    core.profile.when_done(lambda: tables.append(core.profile.table()))
    run(core)
    assert "3 steps decoding" in tables[0]
    assert "1 steps with prompts" in tables[0]
    for part in ("schedule", "execute, the rest", "update"):
        assert f"\n{part}" in tables[0]


def test_a_stop_from_outside_drops_what_is_under_way() -> None:
    """As the server does at a stop string: it aborts between two steps, and the others go on."""
    core, _, stages = make_core()
    for name, token in (("a", 1), ("b", 2)):
        core.add_request(request(name, [token], max_tokens=12))
    heard: dict[str, list[int]] = {"a": [], "b": []}
    while core.has_work():
        for output in core.step():
            heard[output.request_id] += output.new_token_ids
        if len(heard["a"]) == 5 and core.stats().num_running == 2:
            assert stages.num_in_flight == 1
            core.abort(["a"])
        core.check_integrity()
    assert heard == {"a": generate([1], 5), "b": generate([2], 12)}
