"""One Python literal, written as JSON while it is being read."""

from __future__ import annotations

import json
import math
import re

_WORDS = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}
_CLOSING = {"[": "]", "(": ")", "{": "}"}
_IN_STRING = re.compile(r"""[^"'\\]+""")
_PLAIN = re.compile(r"[\w.+-]")
_LONGEST = 400  # characters of a number or word
_SIMPLE_ESCAPES = dict(zip("\\'\"abfnrtv0", "\\'\"\a\b\f\n\r\t\v\0", strict=True))
_CODE_ESCAPES = {"x": 2, "u": 4, "U": 8}


class PythonValue:
    """Follows a literal character by character, without recursion: strings, numbers, True, False, None, lists,
    tuples, and dictionaries whose keys are strings.

    `taken` is what was read, as JSON. Once `ended` or `faulty`, nothing more is read.
    """

    def __init__(self) -> None:
        self.ended = False
        self.faulty = False
        self._taken: list[str] = []
        self._open: list[str] = []
        # What is expected: a value; an item or the end of a list; a colon; more, which is a comma or an end; or the
        # rest of a string, an escape, or a plain word or number.
        self._state = "value"
        self._comma = False  # one has come, and no item behind it
        self._is_key = False
        self._quote = ""
        self._rest: list[str] = []  # of an escape, a number or a word
        self._missing = 0  # digits of an escape

    @property
    def taken(self) -> str:
        taken = "".join(self._taken)
        self._taken.clear()
        return taken

    @property
    def unread(self) -> str:
        """Of a faulty value, the word that is the fault."""
        return "".join(self._rest)

    def read(self, text: str, at: int) -> int:
        """As `JsonValue.read`. A number or a word ends with the character after it."""
        while at < len(text) and not self.ended and not self.faulty:
            if self._state == "string" and (run := _IN_STRING.match(text, at)):
                self._taken.append(_escaped(run[0]))
                at = run.end()
            elif self._step(text[at]):
                at += 1
        return at

    def _step(self, char: str) -> bool:
        """Whether the character was read."""
        if self._state == "plain":
            if _PLAIN.match(char) and len(self._rest) < _LONGEST:
                self._rest.append(char)
                return True
            self._end_plain()
            return False
        if self._state == "string":
            self._step_in_string(char)
        elif self._state == "escape":
            self._step_in_escape(char)
        elif not char.isspace():
            return self._step_between(char)
        return not self.faulty

    def _step_in_string(self, char: str) -> None:
        if char == "\\":
            self._state = "escape"
        elif char != self._quote:
            self._taken.append(_escaped(char))
        else:
            self._taken.append('"')
            if self._is_key:
                self._is_key, self._state = False, "colon"
            else:
                self._value_ended()

    def _step_in_escape(self, char: str) -> None:
        if self._missing:
            self._rest.append(char)
            self._missing -= 1
            if not self._missing:
                self._end_escape()
        elif char in _CODE_ESCAPES:
            self._missing = _CODE_ESCAPES[char]
        else:
            plain = "" if char == "\n" else _SIMPLE_ESCAPES.get(char, "\\" + char)
            self._taken.append(_escaped(plain))
            self._state = "string"

    def _end_escape(self) -> None:
        digits = "".join(self._rest)
        self._rest.clear()
        code = int(digits, 16) if re.fullmatch("[0-9a-fA-F]+", digits) else 0x110000
        if code > 0x10FFFF:
            self.faulty = True
            return
        # JSON spells halves of surrogate pairs as Python does; no encoding takes them otherwise.
        self._taken.append(_escaped(chr(code)) if not 0xD800 <= code < 0xE000 else f"\\u{code:04x}")
        self._state = "string"

    def _step_between(self, char: str) -> bool:
        state, inner = self._state, self._open[-1] if self._open else ""
        if inner and char == _CLOSING[inner] and state in ("item", "more"):
            self._taken.append("}" if self._open.pop() == "{" else "]")
            self._comma = False
            self._value_ended()
        elif state == "more" and char == ",":
            self._state, self._comma = "item", True
        elif state == "colon" and char == ":":
            self._taken.append(": ")
            self._state = "value"
        elif state == "item" and inner == "{" and char in "\"'":
            self._is_key = True
            self._begin_value(char)
        elif state == "value" or (state == "item" and inner != "{"):
            self._begin_value(char)
        else:
            self.faulty = True
        return not self.faulty

    def _begin_value(self, char: str) -> None:
        begins = {"[": "[", "(": "[", "{": "{", '"': '"', "'": '"'}.get(char, "")
        if not begins and not _PLAIN.match(char):
            self.faulty = True
            return
        self._taken.append((", " if self._comma else "") + begins)
        self._comma = False
        if begins == '"':
            self._state, self._quote = "string", char
        elif begins:
            self._open.append(char)
            self._state = "item"
        else:
            self._state, self._rest = "plain", [char]

    def _end_plain(self) -> None:
        written = _WORDS.get(self.unread) or _number(self.unread)
        if written is None:
            self.faulty = True
        else:
            self._rest.clear()
            self._taken.append(written)
            self._value_ended()

    def _value_ended(self) -> None:
        self._state = "more"
        self.ended = not self._open


def _number(text: str) -> str | None:
    """A number as JSON; None where it is none, or has no end."""
    for kind in (lambda: int(text, 0), lambda: float(text)):
        try:
            number = kind()
        except ValueError:
            continue
        return json.dumps(number) if math.isfinite(number) else None
    return None


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
