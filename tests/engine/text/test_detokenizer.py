"""Text comes in whole characters, and nothing of a stop string gets out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from quire_engine.sampling_params import SamplingParams
from quire_engine.text.detokenizer import IncrementalDetokenizer
from quire_engine.text.tokenizer import load_tokenizer

TEXT = "Hello world, naïve café — 你好 🙂👩‍👩‍👧 done.\nThe end of the end"


@pytest.fixture(scope="module")
def byte_level() -> PreTrainedTokenizerFast:
    """Byte-level BPE with few merges: most letters outside ASCII take several tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(["hello world the end of the end"] * 5, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def word_marks() -> PreTrainedTokenizerFast:
    """Words that carry their leading space as a mark, which a text's first word loses, and bytes as a fallback."""
    words = ["▁Hello", "▁world", "Hello", "▁the", "▁end", "▁", ",", "."]
    vocabulary = ["<unk>", "<s>", "</s>", *words, *(f"<0x{i:02X}>" for i in range(256))]
    model = models.BPE({w: i for i, w in enumerate(vocabulary)}, [], unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def pieces(
    tokenizer: PreTrainedTokenizerFast,
    ids: list[int],
    prompt: list[int] | None = None,
    ended_by_token: bool = False,
    **params: object,
) -> tuple[list[str], str | None]:
    """The text of each token, fed one by one, and the stop string."""
    detokenizer = IncrementalDetokenizer(tokenizer, prompt or [], SamplingParams(max_tokens=None, **params))  # type: ignore[arg-type]  # mixed values
    out, stop = [], None
    for i, token in enumerate(ids):
        last = i == len(ids) - 1
        text, stop = detokenizer.update([token], last, ended_by_token=last and ended_by_token)
        out.append(text)
        if stop is not None:
            break
    return out, stop


def test_characters_of_several_tokens_come_whole(byte_level: PreTrainedTokenizerFast) -> None:
    ids = byte_level.encode(TEXT)
    assert len(ids) > len(TEXT)
    out, _ = pieces(byte_level, ids)
    assert "".join(out) == TEXT
    assert all("\ufffd" not in piece for piece in out)
    assert "🙂" in out


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=40), cuts=st.lists(st.integers(1, 5), min_size=200, max_size=200))
def test_any_text_comes_back_however_its_tokens_are_grouped(
    byte_level: PreTrainedTokenizerFast, text: str, cuts: list[int]
) -> None:
    ids = byte_level.encode(text)
    detokenizer = IncrementalDetokenizer(byte_level, [], SamplingParams())
    out = ""
    for cut in cuts:
        group, ids = ids[:cut], ids[cut:]
        out += detokenizer.update(group, finished=not ids)[0]
        if not ids:
            break
    assert out == byte_level.decode(byte_level.encode(text), clean_up_tokenization_spaces=False)


def test_a_character_that_never_ends_is_shown_at_the_end(byte_level: PreTrainedTokenizerFast) -> None:
    ids = byte_level.encode("a🙂")[:-1]
    assert "".join(pieces(byte_level, ids)[0]) == "a\ufffd"


def test_bytes_that_make_no_character_do_not_hold_up_the_text(byte_level: PreTrainedTokenizerFast) -> None:
    broken = byte_level.encode("🙂")[:1] * 50 + byte_level.encode("fine")
    out, _ = pieces(byte_level, broken)
    assert any(out[:20])
    assert "".join(out).endswith("fine")


def test_a_leading_space_depends_on_what_stands_before(word_marks: PreTrainedTokenizerFast) -> None:
    hello, world, the = (word_marks.convert_tokens_to_ids(t) for t in ("▁Hello", "▁world", "▁the"))
    assert "".join(pieces(word_marks, [world, the], prompt=[hello])[0]) == " world the"


def test_byte_fallback_comes_whole(word_marks: PreTrainedTokenizerFast) -> None:
    smile = [word_marks.convert_tokens_to_ids(f"<0x{b:02X}>") for b in "🙂".encode()]
    hello = word_marks.convert_tokens_to_ids("▁Hello")
    assert pieces(word_marks, [hello, *smile, hello])[0] == ["Hello", "", "", "", "🙂", " Hello"]


@pytest.mark.parametrize(
    ("stop", "include", "expected", "found"),
    [
        (["world"], False, "Hello ", "world"),
        (["world"], True, "Hello world", "world"),
        (["好 🙂"], False, TEXT[: TEXT.index("好 🙂")], "好 🙂"),
        (["nothing", "o w"], False, "Hell", "o w"),
        (["end of the", "end"], False, TEXT[: TEXT.index("end of")], "end"),
        (["The end of the end of"], False, TEXT, None),
        (["xyz"], False, TEXT, None),
    ],
)
def test_text_ends_before_the_first_stop_string(
    byte_level: PreTrainedTokenizerFast, stop: list[str], include: bool, expected: str, found: str | None
) -> None:
    out, reason = pieces(byte_level, byte_level.encode(TEXT), stop=stop, include_stop_str_in_output=include)
    assert ("".join(out), reason) == (expected, found)


@settings(max_examples=100, deadline=None)
@given(text=st.text("abc", max_size=30), stop=st.lists(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=3))
def test_no_part_of_a_stop_string_gets_out_and_all_before_it_does(
    byte_level: PreTrainedTokenizerFast, text: str, stop: list[str]
) -> None:
    """Letter by letter, the answer ends with the first stop string that is complete."""
    out, reason = pieces(byte_level, [byte_level.encode(c)[0] for c in text], stop=stop)
    ends = [text.find(s) + len(s) for s in stop if s in text]
    if not ends:
        assert ("".join(out), reason) == (text, None)
        return
    assert reason in stop
    assert "".join(out) + reason == text[: min(ends)]


def test_text_that_may_begin_a_stop_string_waits_and_comes_when_it_does_not(
    byte_level: PreTrainedTokenizerFast,
) -> None:
    ids = [byte_level.encode(c)[0] for c in "abXabY"]
    assert pieces(byte_level, ids, stop=["abY!"])[0] == ["", "", "abX", "", "", "abY"]


def test_stop_strings_do_not_count_before_min_tokens(byte_level: PreTrainedTokenizerFast) -> None:
    ids = [byte_level.encode(c)[0] for c in "abcabc"]
    out, reason = pieces(byte_level, ids, stop=["b"], min_tokens=3)
    assert ("".join(out), reason) == ("abca", "b")


def test_special_tokens_are_left_out_unless_wanted(byte_level: PreTrainedTokenizerFast) -> None:
    bos = byte_level.bos_token_id
    ids = [bos, *byte_level.encode("hi"), bos, *byte_level.encode("ho")]
    assert "".join(pieces(byte_level, ids)[0]) == "hiho"
    assert "".join(pieces(byte_level, ids, skip_special_tokens=False)[0]) == "<s>hi<s>ho"


def test_a_token_that_only_ends_the_answer_has_no_text(byte_level: PreTrainedTokenizerFast) -> None:
    word, end = byte_level.encode("a")[0], byte_level.encode("b")[0]
    assert "".join(pieces(byte_level, [word, end], ended_by_token=True)[0]) == "a"
    assert "".join(pieces(byte_level, [word, end])[0]) == "ab"
    included = pieces(byte_level, [word, end], ended_by_token=True, include_stop_str_in_output=True)
    assert "".join(included[0]) == "ab"


def test_tokenizers_load_and_work_without_torch(byte_level: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    byte_level.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    byte_level.save_pretrained(tmp_path)
    code = f"""
import sys
from quire_engine.text.tokenizer import load_tokenizer
from quire_engine.text.detokenizer import IncrementalDetokenizer
from quire_engine.sampling_params import SamplingParams
tokenizer = load_tokenizer({str(tmp_path)!r})
ids = tokenizer.encode("hello 🙂")
assert IncrementalDetokenizer(tokenizer, [], SamplingParams()).update(ids, True)[0] == "hello 🙂"
assert tokenizer.apply_chat_template([{{"role": "user", "content": "x"}}], tokenize=False) == "x"
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_directory_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"the tokenizer of {tmp_path}.*--tokenizer"):
        load_tokenizer(str(tmp_path))


def test_a_tokenizers_directory_that_does_not_exist_is_named_as_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"the directory {tmp_path}/nowhere does not exist: check --tokenizer"):
        load_tokenizer(f"{tmp_path}/nowhere")


def test_the_work_for_a_token_does_not_grow_with_the_text(byte_level: PreTrainedTokenizerFast) -> None:
    decoded = 0

    class Counting:
        def decode(self, ids: list[int], **options: bool) -> str:
            nonlocal decoded
            decoded += len(ids)
            return str(byte_level.decode(ids, **options))

    ids = byte_level.encode(TEXT) * 50
    detokenizer = IncrementalDetokenizer(Counting(), [], SamplingParams(max_tokens=None, stop=["zq"]))  # type: ignore[arg-type]  # a stand-in
    out = "".join(detokenizer.update([token], False)[0] for token in ids)
    assert out == TEXT * 50
    assert decoded < 20 * len(ids)


def test_a_unigram_tokenizer_keeps_its_spaces() -> None:
    unigram = Tokenizer(models.Unigram())
    unigram.pre_tokenizer, unigram.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=40, special_tokens=["<s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    unigram.train_from_iterator(["hello world the end of the end", "return the value"] * 9, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=unigram, bos_token="<s>", unk_token="<unk>")
    prompt, answer = tokenizer.encode("return the"), tokenizer.encode("end of the world")
    assert "".join(pieces(tokenizer, answer, prompt)[0]) == " end of the world"
    assert "".join(pieces(tokenizer, answer, [tokenizer.bos_token_id])[0]) == "end of the world"
