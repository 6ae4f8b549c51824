r"""Units of measurement: words and symbols, their dimension, and their size, so that units of one dimension convert.

``read_unit("square feet")`` and ``read_unit("ft^2")`` are one unit, ``read_unit("miles per hour")`` is "mph".
"""

import re
from dataclasses import dataclass
from fractions import Fraction

PREFIXES = (
    ("nano", "n", Fraction(1, 10**9)),
    ("micro", "μ", Fraction(1, 10**6)),
    ("milli", "m", Fraction(1, 1000)),
    ("centi", "c", Fraction(1, 100)),
    ("deci", "d", Fraction(1, 10)),
    ("kilo", "k", Fraction(1000)),
    ("mega", "M", Fraction(10**6)),
    ("giga", "G", Fraction(10**9)),
)

Dimension = dict[str, int]
_LENGTH, _MASS, _TIME, _MONEY = {"length": 1}, {"mass": 1}, {"time": 1}, {"dollar": 1}
_ENERGY: Dimension = {"mass": 1, "length": 2, "time": -2}

# Words and symbols, the dimension, and the size in metres, kilograms, seconds and dollars.
_WITH_PREFIXES: tuple[tuple[str, str, Dimension, Fraction], ...] = (
    ("meter meters metre metres", "m", _LENGTH, Fraction(1)),
    ("gram grams gramme grammes", "g", _MASS, Fraction(1, 1000)),
    ("second seconds", "s", _TIME, Fraction(1)),
    ("liter liters litre litres", "L l", {"length": 3}, Fraction(1, 1000)),
    ("newton newtons", "N", {"mass": 1, "length": 1, "time": -2}, Fraction(1)),
    ("joule joules", "J", _ENERGY, Fraction(1)),
    ("calorie calories", "cal", _ENERGY, Fraction(4184, 1000)),
    ("watt watts", "W", {"mass": 1, "length": 2, "time": -3}, Fraction(1)),
    ("pascal pascals", "Pa", {"mass": 1, "length": -1, "time": -2}, Fraction(1)),
    ("hertz", "Hz", {"time": -1}, Fraction(1)),
    ("ampere amperes amp amps", "A", {"current": 1}, Fraction(1)),
    ("volt volts", "V", {"mass": 1, "length": 2, "time": -3, "current": -1}, Fraction(1)),
    ("ohm ohms", "Ω", {"mass": 1, "length": 2, "time": -3, "current": -2}, Fraction(1)),
    ("mole moles", "mol", {"amount": 1}, Fraction(1)),
    ("byte bytes", "B", {"data": 1}, Fraction(8)),
    ("bit bits", "", {"data": 1}, Fraction(1)),
)
_WITHOUT_PREFIXES: tuple[tuple[str, str, Dimension, Fraction], ...] = (
    ("inch inches", "in", _LENGTH, Fraction(254, 10_000)),
    ("foot feet", "ft", _LENGTH, Fraction(3048, 10_000)),
    ("yard yards", "yd", _LENGTH, Fraction(9144, 10_000)),
    ("mile miles", "mi", _LENGTH, Fraction(1_609_344, 1000)),
    ("acre acres", "", {"length": 2}, Fraction(40_468_564_224, 10**7)),
    ("hectare hectares", "ha", {"length": 2}, Fraction(10_000)),
    ("gallon gallons", "gal", {"length": 3}, Fraction(3_785_411_784, 10**12)),
    ("quart quarts", "qt", {"length": 3}, Fraction(946_352_946, 10**12)),
    ("pint pints", "pt", {"length": 3}, Fraction(473_176_473, 10**12)),
    ("cup cups", "", {"length": 3}, Fraction(2_365_882_365, 10**13)),
    ("pound pounds", "lb lbs", _MASS, Fraction(45_359_237, 10**8)),
    ("ounce ounces", "oz", _MASS, Fraction(45_359_237, 16 * 10**8)),
    ("ton tonne tons tonnes", "t", _MASS, Fraction(1000)),
    ("minute minutes", "min mins", _TIME, Fraction(60)),
    ("hour hours", "h hr hrs", _TIME, Fraction(3600)),
    ("day days", "", _TIME, Fraction(86_400)),
    ("week weeks", "wk wks", _TIME, Fraction(7 * 86_400)),
    # A year of 365 days and a month of a twelfth of it.
    ("month months", "", _TIME, Fraction(365 * 7200)),
    ("year years", "yr yrs", _TIME, Fraction(365 * 86_400)),
    ("decade decades", "", _TIME, Fraction(3650 * 86_400)),
    ("century centuries", "", _TIME, Fraction(36_500 * 86_400)),
    ("", "mph", {"length": 1, "time": -1}, Fraction(1_609_344, 3_600_000)),
    ("", "kph kmh", {"length": 1, "time": -1}, Fraction(1000, 3600)),
    ("dollar dollars usd", "$", _MONEY, Fraction(1)),
    ("cent cents penny pennies", "¢", _MONEY, Fraction(1, 100)),
    ("euro euros eur", "€", {"euro": 1}, Fraction(1)),
    ("gbp", "£", {"pound sterling": 1}, Fraction(1)),
    ("rupee rupees", "₹", {"rupee": 1}, Fraction(1)),
    ("yen", "¥", {"yen": 1}, Fraction(1)),
    # Temperatures have zeros of their own, so they do not convert.
    ("celsius", "°C", {"celsius": 1}, Fraction(1)),
    ("fahrenheit", "°F", {"fahrenheit": 1}, Fraction(1)),
    ("kelvin kelvins", "K", {"kelvin": 1}, Fraction(1)),
    ("radian radians", "rad rads", {"angle": 1}, Fraction(1)),
)
_DEGREES = ("degree", "degrees", "deg", "°")
_TEMPERATURES = frozenset({"celsius", "fahrenheit"})


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit, or a product of powers of units.

    Args:
        dimension: its powers of length, mass, time, dollar and so on.
        size: in units of metre, kilogram, second, dollar and so on, less its powers of pi.
        pi: powers of pi in the size: 1 for a degree, which is pi / 180 radians.
        generic: the power of "unit", whose size is not known: 2 for "square units", 0 for a real unit.
    """

    dimension: frozenset[tuple[str, int]] = frozenset()
    size: Fraction = Fraction(1)
    pi: int = 0
    generic: int = 0

    def power(self, exponent: int) -> "Unit":
        """This unit raised to a power."""
        dimension = frozenset((name, count * exponent) for name, count in self.dimension if count * exponent)
        return Unit(dimension, self.size**exponent, self.pi * exponent, self.generic * exponent)

    def times(self, other: "Unit") -> "Unit":
        """A product of two units."""
        counts = dict(self.dimension)
        for name, count in other.dimension:
            counts[name] = counts.get(name, 0) + count
        dimension = frozenset(item for item in counts.items() if item[1])
        return Unit(dimension, self.size * other.size, self.pi + other.pi, self.generic + other.generic)

    def in_units_of(self, other: "Unit") -> "tuple[Fraction, int] | None":
        """The size of this unit in another one, as a rational and a power of pi; None where they measure different things.

        "Square units" may be square metres, "degrees" degrees Celsius.
        """
        if self.generic or other.generic:
            same = other.generic == self.generic or _is_length(self, other.generic) or _is_length(other, self.generic)
            return (Fraction(1), 0) if same else None
        if self.dimension == other.dimension:
            return self.size / other.size, self.pi - other.pi
        loose = (self == DEGREE and _is_temperature(other)) or (other == DEGREE and _is_temperature(self))
        return (Fraction(1), 0) if loose else None


DEGREE = Unit(frozenset({("angle", 1)}), Fraction(1, 180), pi=1)


def _is_length(unit: Unit, power: int) -> bool:
    return power != 0 and unit.dimension == {("length", power)}


def _is_temperature(unit: Unit) -> bool:
    return len(unit.dimension) == 1 and next(iter(unit.dimension))[0] in _TEMPERATURES


def _tables() -> tuple[dict[str, Unit], dict[str, Unit]]:
    words = {"unit": Unit(generic=1), "units": Unit(generic=1)} | dict.fromkeys(_DEGREES[:2], DEGREE)
    symbols: dict[str, Unit] = dict.fromkeys(_DEGREES[2:], DEGREE)
    for names, signs, dimension, size in _WITH_PREFIXES + _WITHOUT_PREFIXES:
        unit = Unit(frozenset(dimension.items()), size)
        words |= dict.fromkeys(names.split(), unit)
        symbols |= dict.fromkeys(signs.split(), unit)
    for names, signs, dimension, size in _WITH_PREFIXES:
        for prefix, letter, factor in PREFIXES:
            unit = Unit(frozenset(dimension.items()), size * factor)
            words |= {prefix + name: unit for name in names.split()}
            for sign in signs.split():
                symbols.setdefault(letter + sign, unit)
    return words, symbols


WORDS, SYMBOLS = _tables()
_FOLDED = {sign.lower(): unit for sign, unit in reversed(SYMBOLS.items()) if len(sign) > 1}
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_AFTERWARDS = {"squared": 2, "cubed": 3}
_TOKEN = re.compile(
    r"(?P<name>[a-zA-ZμΩ]+|°[CF]?|[$¢€£¥₹])\.?(?: ?\^ ?(?:(?P<digit>\d)|\{(?P<power>-?\d)\}))?"
    r"|(?P<per>/)|(?P<times> |\\cdot ?|\*)"
)


def find_unit(name: str) -> Unit | None:
    """A single unit by its word or symbol.

    "KM" is "km" too, but "mv" is no millivolt, and letters that stand alone keep their case: "M" is nothing.
    """
    folded = None if name.islower() else _FOLDED.get(name.lower())
    return WORDS.get(name.lower()) or SYMBOLS.get(name) or folded


def read_unit(text: str) -> Unit | None:
    """The unit that a text names, or None.

    Example: "km/h", "square feet", "cm^2", "miles per hour", "kg m^2/s^2".
    """
    unit, last, place = Unit(), Unit(), 0
    waiting, sign, complete = 1, 1, False
    while place < len(text):
        token = _TOKEN.match(text, place)
        if token is None:
            return None
        place, name = token.end(), token["name"]
        if token["times"]:
            continue
        if not name or name == "per":
            if not complete or sign < 0:
                return None
            sign, complete = -1, False
        elif name in _POWERS:
            waiting, complete = _POWERS[name], False
        elif name in _AFTERWARDS and complete:
            unit = unit.times(last.power(_AFTERWARDS[name] - 1))
        else:
            found = find_unit(name)
            if found is None:
                return None
            last = found.power(int(token["digit"] or token["power"] or 1) * waiting * sign)
            unit, waiting, complete = unit.times(last), 1, True
    return unit if complete else None
