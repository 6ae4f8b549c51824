r"""Plain numbers: integers, decimals, fractions, mixed numbers and powers of ten, with a percent sign or a unit.

Takes a normalised answer, gives an exact rational; whatever is not surely a plain number is None.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

MAX_CHARS = 128
"""Longer answers are not read as numbers."""
DECIMAL_TOLERANCE = Fraction(1, 10**6)
"""Decimals nearer than this may be roundings of one number (math-verify compares six places)."""
RELATIVE_TOLERANCE = Fraction(1, 1000)
"""The same for numbers that are themselves small."""

_UNIT_WORDS = """
    mm cm m km in inch inches ft foot feet yd yard yards mi mile miles meter meters centimeter centimeters kilometer
    kilometers unit units squareunit squareunits sq.units cubicunits squarecm squaremeters squareinches squarefeet
    cubicinches cubicfeet mg g kg gram grams kilogram kilograms lb lbs oz pound pounds ounce ounces ml liter liters
    gallon gallons s sec second seconds min minute minutes h hr hour hours day days week weeks month months year years
    mph milesperhour km/h m/s ft/s degree degrees dollar dollars cent cents people students ways points
"""
UNITS = frozenset(_UNIT_WORDS.split())
"""Units that may follow a number inside ``\\text{}``, without spaces. Other words may be factors ("million")."""

_NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+"
_SIGNED = rf"[+-]?(?:{_NUMBER})"
_PLAIN = re.compile(
    rf"(?:(?P<variable>[a-zA-Z])=)?(?P<sign>[+-]?)(?P<dollar>\$?)(?:"
    rf"(?P<whole>\d+)(?:\\frac\{{(?P<m_top>\d+)\}}\{{(?P<m_bottom>\d+)\}}| (?P<s_top>\d+)/(?P<s_bottom>\d+))"
    rf"|\\frac\{{(?P<f_top>{_SIGNED})\}}\{{(?P<f_bottom>{_SIGNED})\}}"
    rf"|(?P<q_top>{_NUMBER})/(?P<q_bottom>{_NUMBER})"
    rf"|(?P<mantissa>{_NUMBER})(?:(?:\\times|\\cdot|\*)10\^(?:(?P<digit>\d)|\{{(?P<exponent>[+-]?\d{{1,3}})\}}))?"
    rf"|10\^(?:(?P<p_digit>\d)|\{{(?P<p_exponent>[+-]?\d{{1,3}})\}})"
    rf")(?P<percent>%|\\text\{{(?:percent|%)\}})?(?P<degree>°?)"
    rf"(?:\\text\{{(?P<unit>[a-zA-Z/.]+)(?:\^(?P<u_power>[23]))?\}}(?:\^(?P<power>[23]))?)?"
)
_DECIMAL_SIGNS = re.compile(r"\d\.|\.\d|10\^")
_BASED = re.compile(r"(\d+)_(?:(\d{1,2})|\{(\d{1,2})\})")


@dataclass(frozen=True, kw_only=True, slots=True)
class PlainNumber:
    r"""A number and what stands around it.

    Args:
        value: the number as written: 50 for ``50\%``.
        exact: written without a decimal point or power of ten.
        percent: a percent sign follows.
        unit: normalised unit, ``"$"`` for dollars, "" for none.
        variable: the letter of ``x=5``, "" for none.

    Example: ``\frac{1}{2}\text{ cm}`` is ``PlainNumber(value=Fraction(1, 2), exact=True, percent=False, unit="cm",
    variable="")``.
    """

    value: Fraction
    exact: bool
    percent: bool
    unit: str
    variable: str


def read_plain_number(normalized: str) -> PlainNumber | None:
    """The number that a normalised answer is, or None when it may be anything else."""
    found = _PLAIN.fullmatch(normalized) if len(normalized) <= MAX_CHARS else None
    if found is None:
        return None
    value, unit = _value(found), _unit(found)
    if value is None or unit is None:
        return None
    return PlainNumber(
        value=-value if found["sign"] == "-" else value,
        exact=_DECIMAL_SIGNS.search(normalized) is None,
        percent=found["percent"] is not None,
        unit=unit,
        variable=found["variable"] or "",
    )


def compare_plain_numbers(truth: PlainNumber, answer: PlainNumber) -> bool | None:
    r"""Whether two numbers are equal; None when it takes more to decide.

    A percent sign on one side only may be missing or meant: ``50\%`` equals both 50 and 1/2.
    """
    if truth.variable and answer.variable and truth.variable != answer.variable:
        return None
    if truth.unit and answer.unit and truth.unit != answer.unit:
        return None
    pairs = [(left, right) for left in _readings(truth, answer) for right in _readings(answer, truth)]
    if any(left == right for left, right in pairs):
        return True
    if truth.unit != answer.unit:
        # "1 hour" may answer 60 minutes.
        return None
    exact = truth.exact and answer.exact
    return False if exact or all(_far_apart(left, right) for left, right in pairs) else None


def compare_based_numbers(truth: str, answer: str) -> bool | None:
    """Verdict on two normalised numbers with a base (``101_2``): False when their values differ, else None."""
    left, right = _BASED.fullmatch(truth), _BASED.fullmatch(answer)
    if left is None or right is None or max(len(truth), len(answer)) > MAX_CHARS:
        return None
    values = [_in_base(number[1], int(number[2] or number[3])) for number in (left, right)]
    return False if None not in values and values[0] != values[1] else None


def _in_base(digits: str, base: int) -> int | None:
    valid = 2 <= base <= 36 and all(int(digit) < base for digit in digits)
    return int(digits, base) if valid else None


def _readings(number: PlainNumber, other: PlainNumber) -> Iterable[Fraction]:
    return (number.value, number.value / 100) if number.percent and not other.percent else (number.value,)


def _far_apart(left: Fraction, right: Fraction) -> bool:
    small = RELATIVE_TOLERANCE * max(abs(left), abs(right))
    return abs(left - right) > min(DECIMAL_TOLERANCE, small)


def _value(found: re.Match[str]) -> Fraction | None:
    if found["whole"] is not None:
        part = _ratio(found["m_top"] or found["s_top"], found["m_bottom"] or found["s_bottom"])
        # "2\frac{3}{2}" may be a product, "0\frac{1}{2}" is a slip.
        return Fraction(found["whole"]) + part if part and part < 1 and int(found["whole"]) else None
    top = found["f_top"] or found["q_top"]
    if top is not None:
        return _ratio(top, found["f_bottom"] or found["q_bottom"])
    if found["mantissa"] is not None:
        return _decimal(found["mantissa"]) * Fraction(10) ** int(found["digit"] or found["exponent"] or 0)
    return Fraction(10) ** int(found["p_digit"] or found["p_exponent"])


def _ratio(top: str, bottom: str) -> Fraction | None:
    divisor = _decimal(bottom)
    return _decimal(top) / divisor if divisor else None


def _decimal(digits: str) -> Fraction:
    return Fraction(digits.replace(",", "").removesuffix("."))


def _unit(found: re.Match[str]) -> str | None:
    name, power = found["unit"], found["u_power"] or found["power"] or ""
    if name is None:
        return "$" if found["dollar"] else ""
    return None if found["dollar"] or name.lower() not in UNITS else name.lower() + power
