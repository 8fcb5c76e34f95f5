"""What the flags make of requests and answers, for a tokenizer whose markers are special tokens, as Mistral's are."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from quire_engine.reasoning.parser import ReasoningParser
from quire_engine.reasoning.tags import TAGS
from quire_engine.sampling_params import SamplingParams
from quire_engine.server.answer_formats import AnswerFormats
from quire_engine.server.answer_parser import AnswerParser, call_id
from quire_engine.server.protocol.chat import ChatCompletionRequest, ChatMessage
from quire_engine.structured_outputs import AfterReasoning, StructuredOutputsParams
from quire_engine.tools.calls import CallParser
from quire_engine.tools.formats import FORMATS

WORDS = ["[TOOL_CALLS]", "[THINK]", "[/THINK]", "a"]
PARAMS = SamplingParams(structured_outputs=StructuredOutputsParams(choice=["a"]))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="a"))
    words.add_special_tokens(WORDS[:3])
    return PreTrainedTokenizerFast(tokenizer_object=words, extra_special_tokens=WORDS[:3])  # type: ignore[no-untyped-call]  # it has no types


def request(**fields: Any) -> ChatCompletionRequest:
    tool = {"type": "function", "function": {"name": "f"}}
    return ChatCompletionRequest(messages=[ChatMessage(role="user", content="a")], **{"tools": [tool], **fields})


def test_special_tokens_that_mark_calls_are_in_the_text_where_calls_are_looked_for(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    formats = AnswerFormats(tokenizer, "mistral", None, auto=True)
    assert not formats.shaped(PARAMS, request(), [3]).skip_special_tokens
    for fields in ({"tools": None}, {"tool_choice": "none"}, {"tool_choice": "required"}):
        assert formats.shaped(PARAMS, request(**fields), [3]) == PARAMS
    assert AnswerFormats(tokenizer, "hermes", None, auto=True).shaped(PARAMS, request(), [3]) == PARAMS


@pytest.mark.parametrize(("prompt", "begun"), [([3], False), ([3, 1], True), ([3, 1, 2], None)])
def test_forms_wait_for_the_end_of_reasoning_unless_the_prompt_has_it(
    tokenizer: PreTrainedTokenizerFast, prompt: list[int], begun: bool | None
) -> None:
    shaped = AnswerFormats(tokenizer, None, "mistral", auto=False).shaped(PARAMS, request(tools=None), prompt)
    assert not shaped.skip_special_tokens
    assert shaped.structured_outputs is not None
    expected = None if begun is None else AfterReasoning("[THINK]", "[/THINK]", begun)
    assert shaped.structured_outputs.after_reasoning == expected


def test_ids_of_calls_are_as_the_templates_of_the_format_take_them(tokenizer: PreTrainedTokenizerFast) -> None:
    parser = AnswerFormats(tokenizer, "mistral", None, auto=True).parser(request(), [3])
    assert parser is not None
    part = parser.feed(("[TOOL_CALLS]f{}[TOOL_CALLS]f{}", 4), last=True)
    ids = [call.id or "" for call in part.calls]
    assert all(re.fullmatch("[a-zA-Z0-9]{9}", one) for one in ids)
    assert len(set(ids)) == 2


def test_kimi_s_ids_are_numbered_on_through_the_chat(tokenizer: PreTrainedTokenizerFast) -> None:
    past = {"function": {"name": "f", "arguments": "{}"}}
    chat = request().model_copy(
        update={"messages": [ChatMessage.model_validate({"role": "assistant", "tool_calls": [past, past]})]}
    )
    parser = AnswerFormats(tokenizer, "kimi_k2", None, auto=True).parser(chat, [3])
    assert parser is not None
    calls = "".join(
        f"<|tool_call_begin|>functions.f:{i}<|tool_call_argument_begin|>{{}}<|tool_call_end|>" for i in (2, 3)
    )
    part = parser.feed((f"<|tool_calls_section_begin|>{calls}<|tool_calls_section_end|>", 9), last=True)
    assert [call.id for call in part.calls] == ["functions.f:2", "functions.f:3"]


def test_nothing_is_read_out_of_answers_where_nobody_asks(tokenizer: PreTrainedTokenizerFast) -> None:
    assert AnswerFormats(tokenizer, "mistral", None, auto=True).parser(request(tools=None), [3]) is None
    assert AnswerFormats(tokenizer, "mistral", None, auto=True).parser(request(tool_choice="none"), [3]) is None


PIECES = st.lists(st.sampled_from(["<think>", "</think>", "<thi", "nk>", " ", "\n", "a", "[TOOL_CALLS]f{", "}"]))


@given(pieces=PIECES, begun=st.booleans())
def test_an_answer_is_the_same_whole_or_in_pieces(pieces: list[str], begun: bool) -> None:
    def parser() -> AnswerParser:
        tools = CallParser(FORMATS["mistral"], {"f": None})
        return AnswerParser(tools, ReasoningParser(TAGS["qwen3"], begun=begun), new_id=call_id)

    whole, streamed = parser(), parser()
    answer = whole.feed(*((piece, 1) for piece in pieces), last=True)
    parts = [*(streamed.feed((piece, 1), last=False) for piece in pieces), streamed.feed(last=True)]
    assert "".join(part.reasoning for part in parts) == answer.reasoning
    assert "".join(part.content for part in parts) == answer.content
    arguments = [call.arguments for part in parts for call in part.calls]
    assert "".join(arguments) == "".join(call.arguments for call in answer.calls)
    assert whole.num_reasoning_tokens == streamed.num_reasoning_tokens


@pytest.mark.parametrize(
    ("pieces", "begun", "thought"),
    [
        (["<think>", "a", "</think>", "a"], False, 3),
        (["<th", "ink>", "a", "</thi", "nk>a", "a"], False, 5),
        (["a", "</think>", "a"], True, 2),
        (["a", "a"], True, 2),
        (["a", "<think>", "a"], False, 0),
        ([" ", "<think>", "</think>", "\n", "a"], False, 3),
    ],
)
def test_tokens_are_reasoning_up_to_the_piece_that_ends_it(pieces: list[str], begun: bool, thought: int) -> None:
    parser = AnswerParser(None, ReasoningParser(TAGS["qwen3"], begun=begun), new_id=call_id)
    parser.feed(*((piece, 1) for piece in pieces), last=True)
    assert parser.num_reasoning_tokens == thought
