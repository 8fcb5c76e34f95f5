"""The engine in-process, as a script uses it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from quire_engine import LLM, SamplingParams
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
    answers = [llm.generate(p, GREEDY, use_tqdm=False)[0].outputs[0].token_ids for p in same]  # type: ignore[arg-type]
    together = llm.generate(same, GREEDY, use_tqdm=False)  # type: ignore[arg-type]
    assert answers == [o.outputs[0].token_ids for o in together] == [answers[0]] * 3


def test_each_of_n_answers_has_a_seed_of_its_own_and_they_share_the_prompt(llm: LLM) -> None:
    params = SamplingParams(n=3, seed=7, max_tokens=8, ignore_eos=True)
    prompt = "several-answers-to-one-prompt-that-fills-some-pages"
    hits = llm.core.stats().prefix_cache_hits
    several = llm.generate(prompt, params, use_tqdm=False)[0]
    assert [a.index for a in several.outputs] == [0, 1, 2]
    assert len({tuple(a.token_ids) for a in several.outputs}) == 3
    assert several.num_cached_tokens == 0
    assert llm.core.stats().prefix_cache_hits - hits == 2 * ((len(prompt) - 1) // 8 * 8)
    alone = llm.generate(prompt, SamplingParams(seed=8, max_tokens=8, ignore_eos=True), use_tqdm=False)[0]
    assert alone.outputs[0].token_ids == several.outputs[1].token_ids


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


def test_a_prompt_that_cannot_run_is_refused_and_the_next_call_works(llm: LLM) -> None:
    with pytest.raises(ValueError, match=r"prompt .*: the prompt has 500 tokens.*--max-model-len"):
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
