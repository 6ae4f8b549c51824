r"""Exact arithmetic on spelled numbers: ``\frac{1}{2^{99}}``, ``3\frac{1}{2}``, ``0.\overline{3}``, ``6.02\times 10^{23}``.

Takes a normalised answer and gives a rational; whatever is not surely a number, or grows too large, is None.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_CHARS = 128
"""Longer answers are not read as numbers."""
MAX_BITS = 20_000
"""Powers with more bits are left to a process that can be killed: ``10^{10^{10}}`` would fill the machine."""
MAX_DEPTH = 20
"""Brackets within brackets."""

_TOKEN = re.compile(
    r"(?P<repeating>(?P<whole>\d*)\.(?P<fixed>\d*)\\overline\{(?P<period>\d+)\})"
    r"|(?P<number>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+)"
    r"|(?P<times>\\times ?|\\cdot ?|\*)|(?P<over>\\div ?|/)|(?P<frac>\\frac)|(?P<sign>.)",
    re.ASCII,
)
_MIXED = re.compile(r"(\d+) (\d+)/(\d+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Number:
    """A rational number; ``exact`` when it is written without a decimal point, or with the period of one."""

    value: Fraction
    exact: bool = True


class _NoNumber(Exception):
    """The text is something else than a number."""


def read_number(spelling: str) -> Number | None:
    r"""The number that a normalised answer is, or None when it may be anything else.

    Example: ``-\frac{1}{2}`` is ``Number(Fraction(-1, 2))``, ``2^{10}`` is 1024; ``1/0``, ``10^12`` (which LaTeX reads as
    10^1 2), ``2\frac{3}{2}`` (perhaps a product) and ``x`` are none.
    """
    if not 0 < len(spelling) <= MAX_CHARS:
        return None
    spelling = _MIXED.sub(r"\1\\frac{\2}{\3}", spelling)
    reader = _Reader(list(_TOKEN.finditer(spelling)))
    try:
        value = reader.sum(0)
    except _NoNumber:
        return None
    return Number(value, reader.exact) if reader.at_end else None


class _Reader:
    """Recursive descent over the tokens of a number."""

    def __init__(self, tokens: list[re.Match[str]]) -> None:
        self._tokens = tokens
        self._place = 0
        self.exact = True

    @property
    def at_end(self) -> bool:
        return self._place == len(self._tokens)

    def sum(self, depth: int) -> Fraction:
        if depth > MAX_DEPTH:
            raise _NoNumber
        negative = self._take("-") or (self._take("+") and False)
        total = self._product(depth)
        total = -total if negative else total
        while True:
            if self._take("+"):
                total += self._product(depth)
            elif self._take("-"):
                total -= self._product(depth)
            else:
                return total

    def _product(self, depth: int) -> Fraction:
        product = self._power(depth)
        while True:
            if self._take_kind("times"):
                product *= self._power(depth)
            elif self._take_kind("over"):
                product = _ratio(product, self._power(depth))
            else:
                return product

    def _power(self, depth: int) -> Fraction:
        base = self._atom(depth)
        if not self._take("^"):
            return base
        exponent = self._braced(depth) if self._next == "{" else self._digit()
        if exponent.denominator != 1 or (base == 0 and exponent <= 0):
            raise _NoNumber
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if bits * abs(exponent) > MAX_BITS:
            raise _NoNumber
        return base ** int(exponent)

    def _atom(self, depth: int) -> Fraction:
        if self._take("("):
            value = self.sum(depth + 1)
            self._need(")")
            return value
        if self._next == "{":
            return self._braced(depth)
        if self._take_kind("frac"):
            return _ratio(self._braced(depth), self._braced(depth))
        token = self._take_kind("repeating") or self._take_kind("number")
        if token is None:
            raise _NoNumber
        if token["repeating"]:
            return _repeating(token)
        digits = token["number"].replace(",", "")
        self.exact &= "." not in digits
        value = Fraction(digits.removesuffix("."))
        return self._mixed(value, depth) if digits.isdigit() and self._take_kind("frac") else value

    def _mixed(self, whole: Fraction, depth: int) -> Fraction:
        part = _ratio(self._braced(depth), self._braced(depth))
        # "2\frac{3}{2}" may be a product, "0\frac{1}{2}" is a slip.
        if not (whole and 0 < part < 1):
            raise _NoNumber
        return whole + part

    def _braced(self, depth: int) -> Fraction:
        self._need("{")
        value = self.sum(depth + 1)
        self._need("}")
        return value

    def _digit(self) -> Fraction:
        token = self._take_kind("number")
        # LaTeX raises one character.
        if token is None or len(token[0]) != 1:
            raise _NoNumber
        return Fraction(token[0])

    @property
    def _next(self) -> str:
        return "" if self.at_end else self._tokens[self._place][0]

    def _take(self, sign: str) -> bool:
        taken = self._next == sign
        self._place += taken
        return taken

    def _take_kind(self, kind: str) -> re.Match[str] | None:
        token = None if self.at_end else self._tokens[self._place]
        if token is None or not token[kind]:
            return None
        self._place += 1
        return token

    def _need(self, sign: str) -> None:
        if not self._take(sign):
            raise _NoNumber


def _repeating(token: re.Match[str]) -> Fraction:
    fixed, period = token["fixed"], token["period"]
    start = Fraction(int((token["whole"] or "0") + fixed), 10 ** len(fixed))
    return start + Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(fixed))


def _ratio(top: Fraction, bottom: Fraction) -> Fraction:
    if not bottom:
        raise _NoNumber
    return top / bottom
