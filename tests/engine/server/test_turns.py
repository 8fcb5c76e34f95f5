"""Where a chat may begin when its oldest messages are left out."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from quire_engine.server.protocol.chat import ChatMessage
from quire_engine.server.turns import beginnings, from_beginning


def say(role: str, **fields: Any) -> ChatMessage:
    return ChatMessage.model_validate({"role": role, "content": "a", **fields})


def call(*ids: str) -> ChatMessage:
    calls = [{"id": i, "type": "function", "function": {"name": "f", "arguments": "{}"}} for i in ids]
    return say("assistant", content=None, tool_calls=calls)


def result(call_id: str) -> ChatMessage:
    return say("tool", tool_call_id=call_id)


def test_a_chat_begins_with_a_question_and_the_last_one_stays() -> None:
    chat = [say("system"), say("user"), say("assistant"), say("developer"), say("user"), say("assistant"), say("user")]
    assert beginnings(chat) == [0, 4, 6]
    assert from_beginning(chat, 4) == [0, 3, 4, 5, 6]
    assert from_beginning(chat, 6) == [0, 3, 6]


def test_behind_the_last_question_calls_go_with_their_results() -> None:
    chat = [say("user"), call("a", "b"), result("a"), result("b"), call("c"), result("c")]
    assert beginnings(chat) == [0, 4]  # from 1 on it would be the same chat, as the question stays
    assert from_beginning(chat, 4) == [0, 4, 5]


def test_a_question_between_a_call_and_its_result_is_no_beginning() -> None:
    chat = [say("user"), call("a"), say("user"), result("a"), say("assistant"), say("user")]
    assert beginnings(chat) == [0, 5]


def test_a_name_of_a_call_that_comes_again_is_the_newest_of_it() -> None:
    chat = [say("user"), call("a"), result("a"), say("user"), call("a"), result("a"), say("user")]
    assert beginnings(chat) == [0, 3, 6]


def test_without_a_question_the_last_answer_stays() -> None:
    chat = [say("assistant"), call("a"), result("a")]
    assert beginnings(chat) == [0, 1]
    assert beginnings([say("system")]) == [0]


IDS = st.sampled_from(["a", "b"])
MESSAGES = st.one_of(
    st.sampled_from(["user", "assistant", "system", "developer"]).map(say),
    st.lists(IDS, min_size=1, unique=True).map(lambda ids: call(*ids)),
    IDS.map(result),
)


@given(st.lists(MESSAGES, min_size=1, max_size=12))
def test_each_beginning_keeps_less_and_all_that_must_stay(chat: list[ChatMessage]) -> None:
    kept = [from_beginning(chat, start) for start in beginnings(chat)]
    assert kept[0] == [*range(len(chat))]
    questions = [i for i, message in enumerate(chat) if message.role == "user"]
    for more, fewer in pairwise(kept):
        assert {*fewer} < {*more}
    for places in kept:
        assert len(chat) - 1 in places
        assert {*questions[-1:]} <= {*places}
        assert {i for i, message in enumerate(chat) if message.role in ("system", "developer")} <= {*places}
        callers: dict[str, int] = {}
        for i, message in enumerate(chat):
            for made in message.tool_calls or ():
                callers[str(made.id)] = i
            if message.role == "tool":
                caller = callers.get((message.model_extra or {})["tool_call_id"])
                assert caller is None or i not in places or caller in places
