"""Where a chat may begin when its oldest messages are left out. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from quire_engine.server.protocol.chat import ChatMessage

_LASTING = ("system", "developer")


def beginnings(messages: Sequence[ChatMessage]) -> list[int]:
    """The places from which on messages may be kept, ascending: 0, which is all of them, then each of fewer.

    As templates want turns to take turns, a chat begins with a message of the user's; only behind the last of these,
    which always stays, it may go on with any answer. A call is never parted from its results, and the last message
    stays.
    """
    asked = _last_question(messages)
    ends = _ends_of_calls(messages)
    found, reach = [0], 0  # `reach`: up to where the results of the calls so far go
    drops = False  # whether some message does not stay that did from the last of `found` on
    for i, message in enumerate(messages):
        may_begin = message.role == "user" if i <= asked else message.role not in (*_LASTING, "tool")
        if drops and may_begin and reach <= i:
            found.append(i)
            drops = False
        drops = drops or (message.role not in _LASTING and i != asked)
        reach = max(reach, ends[i])
    return found


def from_beginning(messages: Sequence[ChatMessage], start: int) -> list[int]:
    """The places of the messages that stay: from `start` on, the system's, and the last of the user's."""
    asked = _last_question(messages)
    return [i for i, message in enumerate(messages) if i >= start or i == asked or message.role in _LASTING]


def _last_question(messages: Sequence[ChatMessage]) -> int:
    """The place of the user's last message; -1 where there is none."""
    return max((i for i, message in enumerate(messages) if message.role == "user"), default=-1)


def _ends_of_calls(messages: Sequence[ChatMessage]) -> list[int]:
    """For each message the place behind the last result of what it called, or behind itself."""
    callers: dict[str, int] = {}
    ends = [i + 1 for i in range(len(messages))]
    last_caller = None
    for i, message in enumerate(messages):
        for call in message.tool_calls or ():
            callers[str(call.id)] = last_caller = i
        if message.role == "tool":
            caller = callers.get(str((message.model_extra or {}).get("tool_call_id")), last_caller)
            if caller is not None:
                ends[caller] = i + 1
    return ends
