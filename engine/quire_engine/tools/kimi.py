"""Kimi K2: <|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{...}<|tool_call_end|>, once for each call.

The number counts the calls of a whole chat. With the name it is the call's id, which templates write back.
"""

from __future__ import annotations

import re

from quire_engine.tools.calls import CallFormat
from quire_engine.tools.headed_call import Head, headed_calls

_BEGIN, _ARGUMENTS = "<|tool_call_begin|>", "<|tool_call_argument_begin|>"
_HEAD = Head(
    re.compile(rf"{re.escape(_BEGIN)}\s*(?:functions\.)?([\w.-]+?)(?::\d+)?\s*{re.escape(_ARGUMENTS)}\s*"),
    _BEGIN,
    ("<|tool_call_end|>",),
)

KIMI_K2 = CallFormat(
    headed_calls(_HEAD),
    opening=("<|tool_calls_section_begin|>", "<|tool_call_section_begin|>"),
    closing=("<|tool_calls_section_end|>", "<|tool_call_section_end|>"),
)
