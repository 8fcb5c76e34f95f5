"""What the flags make of requests and answers, for a tokenizer whose markers are special tokens, as Mistral's are."""

from __future__ import annotations

import re
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from quire_engine.sampling_params import SamplingParams
from quire_engine.server.answer_formats import AnswerFormats
from quire_engine.server.protocol.chat import ChatCompletionRequest, ChatMessage
from quire_engine.structured_outputs import AfterReasoning, StructuredOutputsParams

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
    part = parser.feed("[TOOL_CALLS]f{}[TOOL_CALLS]f{}", last=True)
    ids = [call.id or "" for call in part.calls]
    assert all(re.fullmatch("[a-zA-Z0-9]{9}", one) for one in ids)
    assert len(set(ids)) == 2


def test_nothing_is_read_out_of_answers_where_nobody_asks(tokenizer: PreTrainedTokenizerFast) -> None:
    assert AnswerFormats(tokenizer, "mistral", None, auto=True).parser(request(tools=None), [3]) is None
    assert AnswerFormats(tokenizer, "mistral", None, auto=True).parser(request(tool_choice="none"), [3]) is None
