r"""Quantities: what stands before a unit, the unit, factor words ("million"), a base and the time of day.

One small normal form for "5 cm", ``8\pi\text{ cm}^2``, "$5 million", "101_2", "50 %" and "12:30 p.m.", compared with exact
numbers; what is left of a pair when its units agree goes to math-verify without them.
"""

import re
from dataclasses import dataclass, replace
from fractions import Fraction

from workers.reward.arithmetic import MAX_CHARS, Number, read_number
from workers.reward.notation import without_spaces
from workers.reward.units import WORDS, Unit, read_unit

DECIMAL_TOLERANCE = Fraction(1, 10**6)
"""Decimals nearer than this may be roundings of one number (math-verify compares six places)."""
RELATIVE_TOLERANCE = Fraction(1, 1000)
"""The same for numbers that are themselves small."""

FACTORS = {
    "dozen": Fraction(12),
    "hundred": Fraction(100),
    "thousand": Fraction(1000),
    "million": Fraction(10**6),
    "billion": Fraction(10**9),
    "trillion": Fraction(10**12),
    "halves": Fraction(1, 2),
    "thirds": Fraction(1, 3),
    "fourths": Fraction(1, 4),
    "fifths": Fraction(1, 5),
    "sixths": Fraction(1, 6),
    "eighths": Fraction(1, 8),
    "tenths": Fraction(1, 10),
    "hundredths": Fraction(1, 100),
    "thousandths": Fraction(1, 1000),
    "millionths": Fraction(1, 10**6),
}
"""Words that multiply what stands before them."""
_QUALIFIERS = """
    or and not more less than over under above below least most fewer greater plus minus times squared cubed remainder mod
    modulo factorial ago
"""
QUALIFIERS = frozenset(_QUALIFIERS.split())
"""Words that make another answer of a number; every other word behind a number is a label, which is not compared."""
_DIGIT_WORDS = """two three four five six seven eight nine ten eleven twelve"""
BASE_WORDS = {word: number for number, word in enumerate(_DIGIT_WORDS.split(), start=2)} | {"sixteen": 16}
UNIT_WORDS = 6
"""Most words of a unit: "cubic feet per square mile" has five."""
LABEL_CHARS = 4
"""Shortest label outside ``\text{}``: shorter runs of letters are products."""

_TEXT = re.compile(r"\\text ?\{([^{}]*)\}")
_VARIABLE = re.compile(r"([a-zA-Z]) ?= ?")
_MONEY = re.compile(r"(?P<before>[+-]?) ?(?:us ?|US ?)?(?P<sign>[$€£¥₹]) ?(?P<after>[+-]?)")
_BASE = re.compile(rf" (?:in )?\(? ?base[ -]?(\d+|{'|'.join(BASE_WORDS)}) ?\)?$", re.IGNORECASE)
_BASED = re.compile(
    rf"(?P<minus>-?)\(?(?P<digits>(?=[A-Z]*\d)[0-9A-Z]+(?:\.[0-9A-Z]+)?)\)?_ ?"
    rf"(?:(?P<one>\d)|\{{ ?\(?(?P<base>\d+|{'|'.join(BASE_WORDS)})\)? ?\}})"
)
_TEMPERATURE = re.compile(r"(?:°|degrees?) ?(c|f)(?:elsius|ahrenheit)?$", re.IGNORECASE)
_CLOCK = re.compile(
    r"(?P<hour>\d{1,2})(?::(?P<minute>[0-5]\d))?(?: ?(?P<half>[ap]\.? ?m\.?|noon|midnight))?", re.IGNORECASE
)
_TAIL = re.compile(r"(?P<gap> ?)(?=[a-zA-ZμΩ(%°$¢€£¥₹])")
_CORE_END = re.compile(r"(?:[\d)}!.]|\\pi) ?$")
_NEXT_PART = re.compile(r"(?<=[a-z°.]),? (?:and )?(?=[\d.])", re.IGNORECASE)
_WORD = re.compile(r"[a-zA-Z'-]+")

Pair = tuple[str, str]
"""A reference and an answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantity:
    r"""What an answer says, taken apart.

    Args:
        core: what stands before the unit, as math-verify may read it.
        number: its value with factor words and base, where it is a number.
        factor: of the factor words.
        unit: None where there is none.
        sure: False where the unit may be a product of variables ("5m").
        percent: a percent sign follows.
        variable: the letter of "x=5", "" for none.
        qualifiers: words such as "or more".
        based: written with a base.
        minutes: since midnight, of "12:30 p.m." and of what may be a time ("12:30", "3").
        half: "a" or "p" of "a.m." and "p.m.".
    """

    core: str
    number: Number | None = None
    factor: Fraction = Fraction(1)
    unit: Unit | None = None
    sure: bool = True
    percent: bool = False
    variable: str = ""
    qualifiers: tuple[str, ...] = ()
    based: bool = False
    minutes: int | None = None
    half: str = ""

    @property
    def is_plain(self) -> bool:
        """Nothing stands around the core that math-verify would not understand."""
        return self.unit is None and self.factor == 1 and not self.qualifiers and not self.based and not self.half


def read_quantity(spelling: str) -> Quantity | None:
    """The quantity in a spelling of ``with_spaces``; None where the text is too long or has nothing before a unit.

    Example: "x = 5 million cm" has the core "5", the number 5,000,000, the unit centimetre and the variable "x".
    """
    if not 0 < len(spelling) <= MAX_CHARS:
        return None
    has_text = r"\text" in spelling
    flat = re.sub(" +", " ", _TEXT.sub(r" \1 ", spelling)).strip()
    flat = _TEMPERATURE.sub(lambda found: f"°{found[1].upper()}", flat)
    variable = _VARIABLE.match(flat)
    flat = flat[variable.end() :] if variable else flat
    clock = _CLOCK.fullmatch(flat)
    if clock is not None and clock["half"]:
        return _time_of_day(flat, clock)
    money = _MONEY.match(flat)
    sign = ""
    if money is not None:
        sign, flat = money["sign"], money["before"] + money["after"] + flat[money.end() :]
    flat = _BASE.sub(lambda base: f"_{{{base[1]}}}", flat)
    quantity = _sum(flat, has_text) or _with_tail(flat, sign, has_text)
    if quantity is None:
        return None
    if clock is not None:
        quantity = replace(quantity, minutes=_minutes(clock))
    return replace(quantity, variable=variable[1] if variable else "")


def compare_quantities(truth: Quantity, answer: Quantity) -> bool | Pair | None:
    """The verdict where numbers and units decide; else the pair without its units, or None to take it as it is written.

    A unit on one side only may be missing or meant; so may a percent sign: "50%" equals both 50 and 1/2.
    """
    if truth.variable and answer.variable and truth.variable != answer.variable:
        return None
    if truth.half or answer.half:
        return _same_time(truth, answer)
    no_value = any(one.based and one.number is None for one in (truth, answer))
    if truth.qualifiers != answer.qualifiers or no_value:
        return False
    ratio: tuple[Fraction, int] | None = (Fraction(1), 0)
    if truth.unit is not None and answer.unit is not None:
        ratio = truth.unit.in_units_of(answer.unit)
        if ratio is None:
            return False
    elif not (truth.sure and answer.sure):
        return None
    if truth.number is not None and answer.number is not None and ratio[1] == 0:
        verdict = _compare_numbers(truth, answer, ratio[0])
        if verdict is not None:
            return verdict
    if (truth.is_plain and answer.is_plain) or truth.percent != answer.percent:
        return None
    return _scaled(truth, *ratio), _scaled(answer, Fraction(1), 0)


def _with_tail(flat: str, sign: str, has_text: bool) -> Quantity | None:
    """The shortest core whose rest is a unit, factors or labels; the whole where there is no such rest."""
    whole = _quantity(flat, "", sign, has_text, glued=False)
    if whole is not None and whole.number is not None:
        return whole
    for start in _TAIL.finditer(flat):
        core, tail = flat[: start.start()], flat[start.end() :]
        if _CORE_END.search(core):
            found = _quantity(core, tail, sign, has_text, glued=not start["gap"] and core[-1:] != " ")
            if found is not None:
                return found
    return whole


def _quantity(core: str, tail: str, sign: str, has_text: bool, *, glued: bool) -> Quantity | None:
    core = core.strip()
    if not core:
        return None
    based = _BASED.fullmatch(without_spaces(core))
    number = _in_base(based) if based else read_number(without_spaces(core))
    words, percent = _without_percent(tail.strip())
    parts = _Tail.read(words, sign, allow_labels=number is not None, has_text=has_text)
    if parts is None:
        return None
    sure = has_text or not parts.is_doubtful(words, sign, glued)
    return Quantity(
        core=without_spaces(core),
        number=Number(number.value * parts.factor, number.exact) if number else None,
        factor=parts.factor,
        unit=parts.unit,
        sure=sure,
        percent=percent,
        qualifiers=parts.qualifiers,
        based=based is not None,
    )


@dataclass(frozen=True, slots=True)
class _Tail:
    """What stands behind a number: factor words, a unit, labels."""

    factor: Fraction
    unit: Unit | None
    unit_text: str
    qualifiers: tuple[str, ...]

    @classmethod
    def read(cls, text: str, sign: str, *, allow_labels: bool, has_text: bool) -> "_Tail | None":
        if text.startswith("(") and text.endswith(")"):
            text, has_text = text[1:-1].strip(), has_text or len(text) > 2 + LABEL_CHARS
        factor, words = Fraction(1), text.split()
        while words and (found := FACTORS.get(words[0].lower()) or FACTORS.get(words[0].lower().rstrip("s"))):
            factor, words = factor * found, words[1:]
        unit, unit_text, labels = _unit_and_labels(words, sign)
        if not all(map(_WORD.fullmatch, labels)):
            return None
        if labels and not (allow_labels and (has_text or all(len(word) >= LABEL_CHARS for word in labels))):
            return None
        return cls(factor, unit, unit_text, tuple(word.lower() for word in labels if word.lower() in QUALIFIERS))

    def is_doubtful(self, text: str, sign: str, glued: bool) -> bool:
        """Whether the unit may be a product of variables: "5m", "2mg" and "5 m", but neither "5 cm" nor "5 meters"."""
        name = self.unit_text
        if self.unit is None or sign or self.factor != 1 or "/" in name or not name[:1].isalpha():
            return False
        letters = re.match("[a-zA-Z]+", name)
        return letters is not None and letters[0].lower() not in WORDS and (glued or len(letters[0]) == 1)


def _unit_and_labels(words: list[str], sign: str) -> tuple[Unit | None, str, list[str]]:
    """The unit that as many words as possible name, and the words behind it."""
    for count in range(min(len(words), UNIT_WORDS), -1, -1):
        named = " ".join([sign, *words[:count]]).strip()
        unit = read_unit(named) if named else None
        if unit is not None:
            return unit, named, words[count:]
    return None, "", words


def _without_percent(tail: str) -> tuple[str, bool]:
    found = re.match(r"(?:%|per ?cent(?:age points)?\b)\s*", tail, re.IGNORECASE)
    return (tail[found.end() :], True) if found else (tail, False)


def _sum(flat: str, has_text: bool) -> Quantity | None:
    """As in "5 feet 6 inches": the sum of quantities of one dimension, in the unit of the last."""
    parts = [_with_tail(part, "", has_text) for part in _NEXT_PART.split(flat)]
    last = parts[-1]
    if len(parts) < 2 or last is None or last.unit is None:
        return None
    total, exact = Fraction(0), True
    for part in parts:
        ratio = part.unit.in_units_of(last.unit) if part is not None and part.unit is not None else None
        if part is None or part.number is None or ratio is None or ratio[1]:
            return None
        total, exact = total + part.number.value * ratio[0], exact and part.number.exact
    return replace(last, core=_fraction(total), number=Number(total, exact))


def _in_base(found: re.Match[str]) -> Number | None:
    """The value of digits in a base, None where a digit is too large for it."""
    base = (
        int(found["one"] or found["base"]) if (found["one"] or found["base"]).isdigit() else BASE_WORDS[found["base"]]
    )
    whole, _, rest = found["digits"].partition(".")
    try:
        value = Fraction(int(whole + rest, base), base ** len(rest))
    except ValueError:
        return None
    return Number(-value if found["minus"] else value)


def _compare_numbers(truth: Quantity, answer: Quantity, ratio: Fraction) -> bool | None:
    assert truth.number is not None and answer.number is not None
    lefts = [value * ratio for value in _readings(truth, truth.number, answer)]
    pairs = [(left, right) for left in lefts for right in _readings(answer, answer.number, truth)]
    if any(left == right for left, right in pairs):
        return True
    exact = truth.number.exact and answer.number.exact
    return False if exact or all(_far_apart(left, right) for left, right in pairs) else None


def _readings(quantity: Quantity, number: Number, other: Quantity) -> tuple[Fraction, ...]:
    alone = quantity.percent and not other.percent
    return (number.value, number.value / 100) if alone else (number.value,)


def _far_apart(left: Fraction, right: Fraction) -> bool:
    small = RELATIVE_TOLERANCE * max(abs(left), abs(right))
    return abs(left - right) > min(DECIMAL_TOLERANCE, small)


def _scaled(quantity: Quantity, ratio: Fraction, pi: int) -> str:
    """The core with its factor words and the ratio of its unit to the other one's."""
    factor = ratio * quantity.factor
    core = quantity.core
    if quantity.based and quantity.number is not None:
        core, factor = _fraction(quantity.number.value), ratio
    if factor != 1:
        core = rf"({core})\cdot {_fraction(factor)}"
    return rf"({core})\cdot \pi^{{{pi}}}" if pi else core


def _fraction(value: Fraction) -> str:
    return str(value) if value.denominator == 1 else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _time_of_day(flat: str, clock: re.Match[str]) -> Quantity:
    half = clock["half"][0].lower()
    half = "p" if clock["half"].lower() == "noon" else "a" if clock["half"].lower() == "midnight" else half
    minutes = _minutes(clock) % 720 + 720 * (half == "p")
    return Quantity(core=flat, minutes=minutes, half=half)


def _minutes(clock: re.Match[str]) -> int:
    return 60 * int(clock["hour"]) + int(clock["minute"] or 0)


def _same_time(truth: Quantity, answer: Quantity) -> bool:
    """Times of day; without "a.m." or "p.m." an hour up to 12 may be either, one beyond is told from midnight."""
    if truth.minutes is None or answer.minutes is None:
        return False
    either = any(one.half == "" and one.minutes is not None and one.minutes < 780 for one in (truth, answer))
    return (truth.minutes - answer.minutes) % (720 if either else 1440) == 0
