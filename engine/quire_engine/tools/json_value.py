"""One JSON value, checked and passed on while it is being written."""

from __future__ import annotations

import json
import re

SPACE = " \t\n\r"
_LITERALS = {"t": "true", "f": "false", "n": "null"}
_IN_STRING = re.compile(r'[^"\\\x00-\x1f]+')
_DIGITS = "0123456789"
# What may follow each part of a number (RFC 8259, section 6), as (characters, next part).
_NUMBER = {
    "-": (("0", "0"), ("123456789", "i")),
    "0": ((".", "."), ("eE", "e")),
    "i": ((_DIGITS, "i"), (".", "."), ("eE", "e")),
    ".": ((_DIGITS, "f"),),
    "f": ((_DIGITS, "f"), ("eE", "e")),
    "e": (("+-", "s"), (_DIGITS, "x")),
    "s": ((_DIGITS, "x"),),
    "x": ((_DIGITS, "x"),),
}
_WHOLE = "0ifx"  # the parts that a number may end with


class JsonValue:
    """Follows a value character by character, without recursion.

    `taken` is what was read, as it was written but for control characters in strings, which models write and JSON
    forbids: they are escaped. Once `ended` or `faulty`, nothing more is read; what was `taken` before is the beginning
    of a value then.
    """

    def __init__(self) -> None:
        self.ended = False
        self.faulty = False
        self._taken: list[str] = []
        self._open: list[str] = []  # the brackets that are open, innermost last
        # What is expected: a value, a value or ]; a key, a key or }; a colon; a comma or a bracket; or the rest of a
        # string, an escape, a literal or a number.
        self._state = "value"
        self._is_key = False
        self._rest = ""  # of a literal; or how many digits of an escape are missing, one character each
        self._part = ""  # of a number

    @property
    def taken(self) -> str:
        """What was read since the last time."""
        taken = "".join(self._taken)
        self._taken.clear()
        return taken

    def read(self, text: str, at: int) -> int:
        """Read from `text[at]` on. Returns the place of the first character that was not read.

        A number at the top ends with the character after it.
        """
        while at < len(text) and not self.ended and not self.faulty:
            if self._state == "string" and (run := _IN_STRING.match(text, at)):
                self._taken.append(run[0])
                at = run.end()
                continue
            if self._step(text[at]):
                at += 1
        return at

    def _step(self, char: str) -> bool:
        """Whether the character was read."""
        if self._state == "number":
            for chars, part in _NUMBER[self._part]:
                if char in chars:
                    self._part = part
                    self._taken.append(char)
                    return True
            if self._part not in _WHOLE:
                return self._fail()
            self._value_ended()
            return False
        if self._state in ("string", "escape", "hex"):
            return self._step_in_string(char)
        if self._state == "literal":
            if char != self._rest[0]:
                return self._fail()
            self._rest = self._rest[1:]
            self._taken.append(char)
            if not self._rest:
                self._value_ended()
            return True
        if char in SPACE:
            self._taken.append(char)
            return True
        return self._step_between(char)

    def _step_in_string(self, char: str) -> bool:
        if self._state == "escape":
            if char not in '"\\/bfnrtu':
                return self._fail()
            self._state, self._rest = ("hex", "0000") if char == "u" else ("string", "")
        elif self._state == "hex":
            if char not in "0123456789abcdefABCDEF":
                return self._fail()
            self._rest = self._rest[1:]
            self._state = "hex" if self._rest else "string"
        elif char == '"':
            self._taken.append(char)
            if self._is_key:
                self._is_key, self._state = False, "colon"
            else:
                self._value_ended()
            return True
        elif char == "\\":
            self._state = "escape"
        else:
            char = json.dumps(char)[1:-1]
        self._taken.append(char)
        return True

    def _step_between(self, char: str) -> bool:
        state = self._state
        if state in ("value", "value or ]") and self._begin_value(char):
            pass
        elif char == '"' and state in ("key", "key or }"):
            self._state, self._is_key = "string", True
        elif char == ":" and state == "colon":
            self._state = "value"
        elif char == "," and state == "more":
            self._state = "key" if self._open[-1] == "{" else "value"
        elif (char == "}" and state in ("more", "key or }") and self._open[-1] == "{") or (
            char == "]" and state in ("more", "value or ]") and self._open[-1] == "["
        ):
            self._open.pop()
            self._value_ended()
        else:
            return self._fail()
        self._taken.append(char)
        return True

    def _begin_value(self, char: str) -> bool:
        if char in "{[":
            self._open.append(char)
            self._state = "key or }" if char == "{" else "value or ]"
        elif char == '"':
            self._state = "string"
        elif char in _LITERALS:
            self._state, self._rest = "literal", _LITERALS[char][1:]
        elif char == "-" or char in _DIGITS:
            self._state, self._part = "number", char if char in "-0" else "i"
        else:
            return False
        return True

    def _value_ended(self) -> None:
        self._state = "more"
        self.ended = not self._open

    def _fail(self) -> bool:
        self.faulty = True
        return False
