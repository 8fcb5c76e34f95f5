"""The engine in-process, as a script uses it."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from quire_engine import LLM, BeamSearchParams, PoolingParams, SamplingParams
from quire_engine.core.step import StepResult
from quire_engine.interrupts import interrupts_held
from quire_engine.llm import Prompt
from tests.engine.models.checkpoints import FAMILIES, VOCAB_SIZE, make_model, save

pytestmark = pytest.mark.usefixtures("one_thread")

GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> LLM:
    directory = tmp_path_factory.mktemp("llm")
    cls, config = FAMILIES["llama"]
    save(make_model(cls, config()), directory)
    letters = {chr(i): i for i in range(33, 127)}
    vocabulary = letters | {f"<{i}>": i for i in range(VOCAB_SIZE) if i not in letters.values()}
    bpe = Tokenizer(models.BPE(vocabulary, []))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<0>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }};{% endfor %}a:"
    tokenizer.save_pretrained(directory)
    return LLM(str(directory), device="cpu", block_size=8, num_gpu_blocks_override=200)


def test_profiled_steps_are_told_by_their_parts_and_change_no_answer(
    llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    settings = {"device": "cpu", "block_size": 8, "num_gpu_blocks_override": 200}
    profiled = LLM(llm.config.model, profile_steps=4, **settings)
    with caplog.at_level("INFO"):
        answers = [one.generate("abc", GREEDY, use_tqdm=False)[0].outputs[0].token_ids for one in (profiled, llm)]
    assert answers[0] == answers[1]
    (table,) = [message for message in caplog.messages if message.startswith("milliseconds a step")]
    assert "3 steps decoding" in table
    for part in ("schedule", "prepare", "linears", "attention", "model, the rest", "head", "sampling", "update"):
        assert f"\n{part}" in table
    (file,) = tmp_path.glob("quire-steps-*.json")
    events = json.loads(file.read_text())["traceEvents"]
    assert sum(event["name"] == "schedule" for event in events) == 4


def test_where_steps_overlap_texts_end_where_they_do_without(llm: LLM) -> None:
    overlapping = LLM(llm.config.model, device="cpu", block_size=8, num_gpu_blocks_override=200, async_scheduling=True)
    free = replace(GREEDY, max_tokens=24)
    text = llm.generate("abc", free, use_tqdm=False)[0].outputs[0].text
    params = [free, replace(free, stop=[text[9:11]]), replace(free, presence_penalty=1.0), replace(free, seed=3)]
    params[3].temperature = 1.0
    told = [
        [
            (o.text, o.token_ids, o.finish_reason, o.stop_reason)
            for a in one.generate(["abc"] * 4, params)
            for o in a.outputs
        ]
        for one in (llm, overlapping)
    ]
    assert told[0] == told[1]
    assert told[0][1][2] == "stop"


def test_vectors_of_texts_and_tokens_come_in_their_order_from_a_model_that_embeds_and_generates_nothing(
    llm: LLM,
) -> None:
    embedder = LLM(llm.config.model, task="embed", device="cpu", block_size=8, num_gpu_blocks_override=200)
    outputs = embedder.embed(["abc", {"prompt_token_ids": [97, 98, 99]}, "d"], use_tqdm=False)
    assert [o.prompt_token_ids for o in outputs] == [[97, 98, 99], [97, 98, 99], [100]]
    one, again, other = [o.outputs.embedding for o in outputs]
    assert len(one) == outputs[0].outputs.hidden_size == 64
    assert one == pytest.approx(again, abs=1e-6)
    assert one != pytest.approx(other, abs=1e-2)
    assert sum(x * x for x in one) == pytest.approx(1.0)
    assert embedder.encode("abc", use_tqdm=False)[0].outputs.data == pytest.approx(one, abs=1e-6)
    raw = embedder.embed("abc", use_tqdm=False, pooling_params=PoolingParams(normalize=False))
    assert sum(x * x for x in raw[0].outputs.embedding) != pytest.approx(1.0, abs=1e-2)
    with pytest.raises(ValueError, match=r"use /v1/embeddings, or LLM\.embed"):
        embedder.generate("abc", GREEDY, use_tqdm=False)
    with pytest.raises(ValueError, match="start it with --task embed"):
        llm.embed("abc", use_tqdm=False)
    assert llm.generate("abc", GREEDY, use_tqdm=False)[0].finished


def test_answers_come_in_the_prompts_order_with_text_tokens_and_times(llm: LLM) -> None:
    prompts = ["hello" * 8, "a", "bc"]
    outputs = llm.generate(prompts, GREEDY, use_tqdm=False)
    assert [o.prompt for o in outputs] == prompts
    for prompt, output in zip(prompts, outputs, strict=True):
        assert output.finished
        assert output.prompt_token_ids == [ord(c) for c in prompt]
        answer = output.outputs[0]
        assert len(answer.token_ids) == 8
        assert answer.text == llm.get_tokenizer().decode(answer.token_ids, skip_special_tokens=True)
        assert (answer.finish_reason, answer.stop_reason) == ("length", None)
        metrics = output.metrics
        assert metrics.first_token_time is not None
        assert metrics.last_token_time is not None
        assert 0 < metrics.first_token_time <= metrics.last_token_time == metrics.finished_time


def test_a_prompt_may_be_text_or_tokens_alone_or_in_a_list(llm: LLM) -> None:
    same = ["abc", {"prompt": "abc"}, {"prompt_token_ids": [97, 98, 99]}]
    answers = [llm.generate(p, GREEDY, use_tqdm=False)[0].outputs[0].token_ids for p in same]  # type: ignore[arg-type]  # lists are invariant
    together = llm.generate(same, GREEDY, use_tqdm=False)  # type: ignore[arg-type]  # lists are invariant
    assert answers == [o.outputs[0].token_ids for o in together] == [answers[0]] * 3


def test_each_of_n_answers_has_a_seed_of_its_own_and_they_share_the_prompt(llm: LLM) -> None:
    params = SamplingParams(n=3, seed=7, max_tokens=8, ignore_eos=True)
    prompt = "several-answers-to-one-prompt-that-fills-some-pages"
    hits = llm.core.stats().prefix_cache_hits
    several = llm.generate(prompt, params, use_tqdm=False)[0]
    assert [a.index for a in several.outputs] == [0, 1, 2]
    assert len({tuple(a.token_ids) for a in several.outputs}) == 3
    assert several.num_cached_tokens == 0
    assert llm.core.stats().prefix_cache_hits == hits, "its pages were looked up, and not simply shared"
    alone = llm.generate(prompt, SamplingParams(seed=8, max_tokens=8, ignore_eos=True), use_tqdm=False)[0]
    assert alone.outputs[0].token_ids == several.outputs[1].token_ids


def test_a_beam_search_gives_whole_sequences_the_best_first(llm: LLM) -> None:
    params = BeamSearchParams(beam_width=3, max_tokens=6, ignore_eos=True)
    outputs = llm.beam_search(["beams", {"prompt_token_ids": [97, 98]}], params)
    for output, prompt in zip(outputs, ("beams", "ab"), strict=True):
        sums = [sequence.cum_logprob for sequence in output.sequences]
        assert sums == sorted(sums, reverse=True)
        assert len({tuple(sequence.tokens) for sequence in output.sequences}) == 3
        for sequence in output.sequences:
            assert sequence.tokens[:-6] == [ord(c) for c in prompt]
            assert sequence.text == llm.get_tokenizer().decode(sequence.tokens)
            assert sequence.finish_reason == "length"


def test_the_best_of_beams_come_from_generate_too(llm: LLM) -> None:
    params = SamplingParams(n=1, best_of=3, use_beam_search=True, max_tokens=6, ignore_eos=True)
    (output,) = llm.generate("beams", params, use_tqdm=False)
    best = llm.beam_search("beams", BeamSearchParams(beam_width=3, max_tokens=6, ignore_eos=True))[0].sequences[0]
    (answer,) = output.outputs
    assert output.prompt_token_ids + answer.token_ids == best.tokens
    assert answer.cumulative_logprob == best.cum_logprob
    assert output.finished


def test_parameters_may_differ_by_prompt(llm: LLM) -> None:
    params = [SamplingParams(max_tokens=n, ignore_eos=True) for n in (2, 5)]
    assert [len(o.outputs[0].token_ids) for o in llm.generate(["a", "b"], params, use_tqdm=False)] == [2, 5]
    with pytest.raises(ValueError, match="there are 1 prompts and 2 sampling_params"):
        llm.generate(["a"], params)


def test_a_stop_string_ends_an_answer_and_frees_its_pages(llm: LLM) -> None:
    full = llm.generate("stop", GREEDY, use_tqdm=False)[0].outputs[0].text
    stop = full[3:5]
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, stop=[stop])
    answer = llm.generate("stop", params, use_tqdm=False)[0].outputs[0]
    assert (answer.text, answer.finish_reason, answer.stop_reason) == (full[: full.index(stop)], "stop", stop)
    assert llm.core.stats().kv_cache_usage == 0.0


def test_a_conversation_goes_through_the_chat_template(llm: LLM) -> None:
    one = [{"role": "user", "content": "hi"}]
    two = [{"role": "system", "content": "x"}, *one]
    assert llm.chat(one, GREEDY, use_tqdm=False)[0].prompt == "u:hi;a:"
    assert [o.prompt for o in llm.chat([one, two], GREEDY, use_tqdm=False)] == ["u:hi;a:", "s:x;u:hi;a:"]
    template = "{% for t in tools %}{{ t.function.name }};{% endfor %}a:"
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert llm.chat(one, GREEDY, use_tqdm=False, chat_template=template, tools=tools)[0].prompt == "f;a:"


def test_a_prompt_that_cannot_run_is_refused_and_the_next_call_works(llm: LLM) -> None:
    with pytest.raises(
        ValueError,
        match=r"prompt .*: This model's maximum context length is \d+ tokens, .* the prompt has 500 .*--max-model-len",
    ):
        llm.generate(["fine", "x" * 500], GREEDY, use_tqdm=False)
    assert not llm.core.has_work()
    assert len(llm.generate("fine", GREEDY, use_tqdm=False)[0].outputs[0].token_ids) == 8
    llm.core.check_integrity()


def test_the_trained_tiny_model_answers_what_it_was_taught(tiny_model_dir: Path) -> None:
    llm = LLM(str(tiny_model_dir), device="cpu", kv_cache_memory_bytes=64 << 20)
    params = SamplingParams(temperature=0.0, max_tokens=40)
    answer = llm.chat([{"role": "user", "content": "Hello!"}], params, use_tqdm=False)[0].outputs[0]
    assert answer.finish_reason == "stop"
    assert len(answer.text.split()) > 3


def test_logprobs_have_vllms_shapes(llm: LLM) -> None:
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=6, ignore_eos=True, logprobs=2, prompt_logprobs=1, n=2)
    output = llm.generate("hello", params, use_tqdm=False)[0]
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    assert [next(iter(entry)) for entry in output.prompt_logprobs[1:] if entry] == [ord(c) for c in "ello"]
    for answer in output.outputs:
        assert answer.logprobs is not None
        assert [next(iter(entry)) for entry in answer.logprobs] == answer.token_ids
        chosen = [entry[token] for entry, token in zip(answer.logprobs, answer.token_ids, strict=True)]
        assert answer.cumulative_logprob == pytest.approx(sum(c.logprob for c in chosen))
        assert [c.decoded_token for c in chosen] == [llm.get_tokenizer().decode([t]) for t in answer.token_ids]
        for entry in answer.logprobs:
            assert sorted(p.rank for p in entry.values())[:2] == [1, 2]
            assert len(entry) in (2, 3)
    plain = llm.generate("hello", SamplingParams(max_tokens=2), use_tqdm=False)[0]
    assert plain.prompt_logprobs is plain.outputs[0].logprobs is plain.outputs[0].cumulative_logprob is None


def test_best_of_keeps_the_likeliest_answers_and_only_asked_for_logprobs(llm: LLM) -> None:
    params = SamplingParams(n=6, seed=3, max_tokens=8, ignore_eos=True, logprobs=0)
    every = llm.generate("hello", params, use_tqdm=False)[0].outputs
    best = sorted(every, key=lambda a: -(a.cumulative_logprob or 0.0))[:2]
    params = SamplingParams(n=2, best_of=6, seed=3, max_tokens=8, ignore_eos=True)
    kept = llm.generate("hello", params, use_tqdm=False)[0].outputs
    assert [a.token_ids for a in kept] == [a.token_ids for a in best]
    assert [a.index for a in kept] == [0, 1]
    assert all(a.logprobs is None for a in kept)
    assert kept[0].cumulative_logprob == pytest.approx(best[0].cumulative_logprob)


def test_bad_words_do_not_come_and_a_bias_brings_a_token(llm: LLM) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
    free = llm.generate("hello", params, use_tqdm=False)[0].outputs[0]
    pairs = zip(free.token_ids, free.token_ids[1:], strict=False)
    at, word = next((i, chr(a) + chr(b)) for i, (a, b) in enumerate(pairs) if min(a, b) >= 33)
    held = llm.generate("hello", replace(params, bad_words=[word]), use_tqdm=False)[0].outputs[0]
    assert word not in held.text
    assert held.token_ids[: at + 1] == free.token_ids[: at + 1]
    params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True, logit_bias={ord("x"): 100.0})
    assert llm.generate("hello", params, use_tqdm=False)[0].outputs[0].text == "xxxx"


def test_prompts_of_different_salts_share_no_pages_and_a_priority_needs_the_policy(llm: LLM) -> None:
    prompt = "a-prompt-that-fills-three-pages"
    asked = [{"prompt": prompt, "cache_salt": salt} for salt in ("one", "one", "two")]
    cached = [llm.generate([p], GREEDY, use_tqdm=False)[0].num_cached_tokens for p in asked]  # type: ignore[list-item]  # lists are invariant
    assert cached == [0, 24, 0]
    with pytest.raises(ValueError, match="scheduling_policy"):
        llm.generate(["a"], GREEDY, priority=[1])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"presence_penalty": 2.5}, "presence_penalty is 2.5.*between -2 and 2"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty is nan.*between -2 and 2"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0.*between 0.01 and 100"),
        ({"logit_bias": {3: 101.0}}, "logit_bias of token 3 is 101.0.*between -100 and 100"),
        ({"logit_bias": {"a": 1.0}}, "logit_bias has the key 'a'.*token id"),
        ({"logit_bias": dict.fromkeys(range(2000), 1.0)}, "logit_bias holds 2000.*at most 1024"),
        ({"allowed_token_ids": []}, "allowed_token_ids is empty"),
        ({"bad_words": [" "]}, "bad_words holds ' '.*1 to 256 characters"),
        ({"bad_words": ["x"] * 2000}, "bad_words holds 2000.*at most 1024"),
        ({"logprobs": 300}, "logprobs is 300.*between 0 and 256"),
        ({"prompt_logprobs": -1}, "prompt_logprobs is -1.*between 0 and 256"),
        ({"n": 3, "best_of": 2}, "best_of is 2.*between n, 3, and 128"),
    ],
)
def test_a_parameter_out_of_range_is_refused_with_its_name_value_and_limit(
    wrong: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingParams(**wrong)  # type: ignore[arg-type]  # wrong on purpose


def test_a_token_that_the_model_lacks_is_refused(llm: LLM) -> None:
    for name, value in (("logit_bias", {VOCAB_SIZE: 1.0}), ("allowed_token_ids", [1, -1]), ("stop_token_ids", [999])):
        with pytest.raises(ValueError, match=f"{name} holds the token.*between 0 and {VOCAB_SIZE - 1}"):
            llm.generate("a", SamplingParams(**{name: value}), use_tqdm=False)  # type: ignore[arg-type]  # wrong on purpose
    llm.core.check_integrity()


def test_the_tokenizers_own_end_token_ends_an_answer(llm: LLM, tmp_path: Path) -> None:
    """Who tunes a model to another chat format may change tokenizer_config.json alone."""
    shutil.copytree(llm.config.model, tmp_path, dirs_exist_ok=True)
    answer = llm.generate("abc", GREEDY, use_tqdm=False)[0].outputs[0]
    third = answer.token_ids[2]
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings["eos_token"] = llm.get_tokenizer().convert_ids_to_tokens(third)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    other = LLM(str(tmp_path), device="cpu", block_size=8, num_gpu_blocks_override=200)
    ended = other.generate("abc", replace(GREEDY, ignore_eos=False), use_tqdm=False)[0].outputs[0]
    assert (ended.token_ids, ended.finish_reason, ended.stop_reason) == (answer.token_ids[:3], "stop", None)
    assert other.generate("abc", GREEDY, use_tqdm=False)[0].outputs[0].token_ids == answer.token_ids


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C as Python has it, also where who started the suite had it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_within_a_step_takes_effect_after_it_and_the_next_call_answers_as_before(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = "interrupted-in-the-step-that-computes-all-these-pages"
    monkeypatch.setattr(llm.core._pipeline, "collect", _interrupted(llm.core._pipeline.collect))
    with pytest.raises(KeyboardInterrupt):
        llm.generate(prompt, GREEDY, use_tqdm=False)
    monkeypatch.undo()
    again = llm.generate({"prompt": prompt}, GREEDY, use_tqdm=False)[0]
    anew = llm.generate({"prompt": prompt, "cache_salt": "anew"}, GREEDY, use_tqdm=False)[0]
    assert again.outputs[0].token_ids == anew.outputs[0].token_ids


def _interrupted(collect: Callable[[], StepResult]) -> Callable[[], StepResult]:
    def collect_after_an_interrupt() -> StepResult:
        signal.raise_signal(signal.SIGINT)
        return collect()

    return collect_after_an_interrupt


@pytest.mark.usefixtures("interruptible")
def test_a_second_interrupt_does_not_wait() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interrupts_held():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_vectors_share_no_pages_with_prompts_of_another_salt(llm: LLM) -> None:
    embedder = LLM(llm.config.model, task="embed", device="cpu", block_size=8, num_gpu_blocks_override=200)
    prompt = "a-prompt-of-some-pages"
    salted: list[Prompt] = [{"prompt": prompt, "cache_salt": salt} for salt in ("a", "b", "a")]
    cached = [embedder.embed(one, use_tqdm=False)[0].num_cached_tokens for one in salted]
    assert cached[:2] == [0, 0]
    assert cached[2] > 0


def test_a_start_is_summed_up_with_the_time_of_each_of_its_parts(llm: LLM, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="quire_engine.llm"):
        LLM(llm.config.model, device="cpu", block_size=8, num_gpu_blocks_override=200)
    (line,) = (message for message in caplog.messages if message.startswith("ready"))
    parts = r"device [\d.]+ s, config [\d.]+ s, weights [\d.]+ s, memory [\d.]+ s, warm-up [\d.]+ s"
    assert re.fullmatch(rf"ready after [\d.]+ s \({parts}\)", line)
