"""What was thought and what is said: parted the same however the text is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire_engine.reasoning.parser import ReasoningParser
from quire_engine.reasoning.tags import TAGS, ReasoningTags

THINK = ReasoningTags("<think>", "</think>")


def parted(pieces: list[str], *, begun: bool, tags: ReasoningTags = THINK) -> tuple[str, str]:
    parser = ReasoningParser(tags, begun=begun)
    parts = [*map(parser.feed, pieces), parser.finish()]
    return "".join(thought for thought, _ in parts), "".join(said for _, said in parts)


@pytest.mark.parametrize(
    ("text", "outside", "inside"),
    [
        ("<think>\nWhy?\n</think>\n\nSo.\n", ("Why?", "So.\n"), ("Why?", "So.\n")),
        ("\n <think>a <b> c</think>d", ("a <b> c", "d"), ("a <b> c", "d")),
        ("Why?</think>So.", ("", "Why?</think>So."), ("Why?", "So.")),
        ("<think>\n\n</think>\n\nSo.", ("", "So."), ("", "So.")),
        ("<think>Why", ("Why", ""), ("Why", "")),
        ("Why? </thin", ("", "Why? </thin"), ("Why? </thin", "")),
        (" <thin", ("", " <thin"), ("<thin", "")),
        ("a <think>b</think>", ("", "a <think>b</think>"), ("a <think>b", "")),
        ("<think>a</think> b <think>c</think>", ("a", "b <think>c</think>"), ("a", "b <think>c</think>")),
        (" \n", ("", " \n"), ("", "")),
        ("", ("", ""), ("", "")),
    ],
)
def test_reasoning_is_what_stands_between_the_tags(
    text: str, outside: tuple[str, str], inside: tuple[str, str]
) -> None:
    for pieces in ([text], list(text)):
        assert parted(pieces, begun=False) == outside
        assert parted(pieces, begun=True) == inside


@pytest.mark.parametrize("tags", {(tags.start, tags.end): tags for tags in TAGS.values()}.values(), ids=str)
@given(data=st.data(), begun=st.booleans())
def test_any_cuts_part_it_the_same_way(tags: ReasoningTags, data: st.DataObject, begun: bool) -> None:
    parts = [tags.start, tags.end, tags.start[:3], tags.end[:3], tags.end[3:], " ", "\n", "Why?", "So."]
    text = "".join(data.draw(st.lists(st.one_of(st.sampled_from(parts), st.characters()), max_size=20)))
    whole = parted([text], begun=begun, tags=tags)
    assert parted(list(text), begun=begun, tags=tags) == whole
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=4)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert parted(pieces, begun=begun, tags=tags) == whole
    assert not whole[0] or whole[0] == whole[0].strip()


def test_text_is_held_back_only_while_it_may_be_a_tag() -> None:
    parser = ReasoningParser(THINK, begun=True)
    assert parser.feed("one </th") == ("one", "")
    assert parser.feed("ing> two") == (" </thing> two", "")
    assert parser.feed("</think>") == ("", "")
    assert parser.feed("\n\nthree\n") == ("", "three\n")


@pytest.mark.parametrize(
    ("name", "prompt", "begun"),
    [
        ("deepseek_r1", "<|Assistant|>", True),
        ("deepseek_r1", "<|Assistant|><think>\n", True),
        ("deepseek_r1", "<|Assistant|></think>", False),
        ("qwen3", "<|im_start|>assistant\n", False),
        ("qwen3", "<|im_start|>assistant\n<think>\n", True),
        ("qwen3", "<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
    ],
)
def test_the_prompt_s_end_settles_where_an_answer_begins(name: str, prompt: str, begun: bool) -> None:
    assert TAGS[name].begun_by(prompt) == begun
