"""DeepSeek V3, R1 and V3.1: <｜tool▁calls▁begin｜>, calls between two marks each, and <｜tool▁calls▁end｜>.

V3 and R1 write function<｜tool▁sep｜>f and the arguments as a block of code, V3.1 f<｜tool▁sep｜>{...}.
"""

from __future__ import annotations

import re

from quire_engine.tools.calls import CallFormat
from quire_engine.tools.headed_call import Head, headed_calls

_BEGIN, _SEPARATOR, _END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_SERIES = ("<｜tool▁calls▁begin｜>",), ("<｜tool▁calls▁end｜>",)

_V3 = Head(
    re.compile(rf"{_BEGIN}\s*\w*\s*{_SEPARATOR}\s*([\w.-]+)\s*(?:```(?:json)?\s*)?"), _BEGIN, (f"```{_END}", _END)
)
_V31 = Head(re.compile(rf"{_BEGIN}\s*([\w.-]+)\s*{_SEPARATOR}\s*"), _BEGIN, (_END,))

DEEPSEEK_V3 = CallFormat(headed_calls(_V3), *_SERIES)
DEEPSEEK_V31 = CallFormat(headed_calls(_V31), *_SERIES)
