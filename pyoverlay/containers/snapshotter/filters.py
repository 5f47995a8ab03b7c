r"""Which objects does a filter of containerd's grammar match?

::

    filter    := "" | selector ("," selector)*       all selectors must match; "" matches everything
    selector  := path [operator value]               without an operator: the field is there
    path      := field ("." field)*
    field     := quoted | [A-Za-z0-9_-]+
    operator  := "==" | "!=" | "~="                  equal, not equal, matches a regular expression
    value     := quoted | [^\s,]+
    quoted    := '"' ... '"', with Go's escapes; a regular expression also as /.../ or |...|

The rules are containerd's (filters/parser.go, filters/scanner.go).  Pure; it doesn't know what is filtered.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

Path = tuple[str, ...]
Fields = Callable[[Path], str | None]
"""The object's side: the value of the field with this path; None when there is none."""

_BLANK: Final = re.compile(r"\s*")
_FIELD: Final = re.compile(r"[A-Za-z0-9_-]+")
_OPERATOR: Final = re.compile(r"[=!~]+")
_PLAIN_VALUE: Final = re.compile(r'[^\s,."/|=!~][^\s,]*')
_QUOTED: Final = {
    quote: re.compile(rf"{quote}((?:[^{quote}\\\n]|\\.)*){quote}".replace("||", r"|\|"))
    for quote in ('"', "/", r"\|")
}
_ESCAPE: Final = re.compile(
    rb"\\(?:([abfnrtv\\\"/|])|([0-7]{3})|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.?))",
    re.DOTALL,
)
_SIMPLE_ESCAPES: Final = {b"a": 7, b"b": 8, b"f": 12, b"n": 10, b"r": 13, b"t": 9, b"v": 11}


class FilterError(ValueError):
    """A filter isn't in the grammar."""


@dataclass(frozen=True)
class _Selector:
    path: Path
    operator: str = ""
    value: str = ""
    pattern: re.Pattern[str] | None = None

    def matches(self, fields: Fields) -> bool:
        found = fields(self.path)
        if self.operator == "":
            return found is not None
        if self.operator == "==":
            return found == self.value
        # A field that isn't there is as one that is empty.
        if self.operator == "!=":
            return (found or "") != self.value
        assert self.pattern is not None
        return self.pattern.search(found or "") is not None


@dataclass(frozen=True)
class Filter:
    """What matches any of several filters."""

    alternatives: tuple[tuple[_Selector, ...], ...]

    def matches(self, fields: Fields) -> bool:
        """Tell whether an object, given by its ``fields``, matches."""
        return any(all(selector.matches(fields) for selector in each) for each in self.alternatives)


def parse(texts: Iterable[str]) -> Filter:
    """Read filters.

    Args:
        texts: the filters; none at all match everything.

    Returns:
        What matches any of them.

    Raises:
        FilterError: one isn't in the grammar; the text says where.
    """
    alternatives = tuple(tuple(_Parser(text).selectors()) for text in texts)
    return Filter(alternatives or ((),))


class _Parser:
    """Reads one filter from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0

    def selectors(self) -> Iterable[_Selector]:
        if not self._text:
            return
        yield self._selector()
        while self._take(","):
            yield self._selector()
        if self._position < len(self._text):
            raise self._error("expected a comma or the end")

    def _selector(self) -> _Selector:
        path = [self._field()]
        while self._take("."):
            path.append(self._field())
        operator = self._match(_OPERATOR)
        if operator is None:
            return _Selector(tuple(path))
        if operator not in ("==", "!=", "~="):
            self._position -= len(operator)
            raise self._error(f"unknown operator {operator!r}; there are ==, != and ~=")
        value = self._value(regular=operator == "~=")
        return _Selector(tuple(path), operator, value, self._pattern(value) if operator == "~=" else None)

    def _pattern(self, value: str) -> re.Pattern[str]:
        try:
            return re.compile(value)
        except re.error as failure:
            raise self._error(f"{value!r} is no regular expression: {failure}") from None

    def _field(self) -> str:
        found = self._quoted('"')
        if found is None:
            found = self._match(_FIELD)
        if found is None:
            raise self._error("expected a field's name")
        return found

    def _value(self, *, regular: bool) -> str:
        for quote in _QUOTED if regular else ('"',):
            found = self._quoted(quote)
            if found is not None:
                return found
        found = self._match(_PLAIN_VALUE)
        if found is None:
            raise self._error("expected a value; put it in double quotes when it holds signs of the grammar")
        return found

    def _quoted(self, quote: str) -> str | None:
        self._skip_blanks()
        start = self._position
        if not self._text.startswith(quote[-1], start):
            return None
        found = _QUOTED[quote].match(self._text, start)
        if found is None:
            raise self._error("this quote isn't closed")
        self._position = found.end()
        try:
            return _ESCAPE.sub(_unescaped, found[1].encode()).decode()
        except ValueError as failure:
            self._position = start
            raise self._error(f"what is quoted here is no text: {failure}") from None

    def _match(self, pattern: re.Pattern[str]) -> str | None:
        self._skip_blanks()
        found = pattern.match(self._text, self._position)
        if found is None:
            return None
        self._position = found.end()
        return found[0]

    def _take(self, sign: str) -> bool:
        self._skip_blanks()
        if not self._text.startswith(sign, self._position):
            return False
        self._position += len(sign)
        return True

    def _skip_blanks(self) -> None:
        found = _BLANK.match(self._text, self._position)
        assert found is not None
        self._position = found.end()

    def _error(self, text: str) -> FilterError:
        before, after = self._text[: self._position], self._text[self._position :]
        return FilterError(f"filter {before!r} >|< {after!r}: {text}")


def _unescaped(found: re.Match[bytes]) -> bytes:
    """Return what an escape of Go's string syntax stands for."""
    sign, octal, byte, short, long, wrong = found.groups()
    if wrong is not None:
        raise ValueError(f"unknown escape {found[0].decode(errors='replace')!r}")
    if sign is not None:
        return bytes([_SIMPLE_ESCAPES[sign]]) if sign in _SIMPLE_ESCAPES else bytes(sign)
    if octal is not None:
        return int(octal, 8).to_bytes(1, "big")
    if byte is not None:
        return bytes.fromhex(byte.decode())
    return chr(int(short or long, 16)).encode()
