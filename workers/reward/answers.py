r"""Answers as text: the box they stand in, one spelling for all, and a verdict where spelling and numbers suffice.

Notation that never changes what an answer says is unified: fractions, spaces, brackets and signs are spelled one way.
"""

import re

from workers.reward.plain_number import compare_based_numbers, compare_plain_numbers, read_plain_number

# An opening box, an escaped character (so that \{ and \} are not braces), or a brace.
_TOKENS = re.compile(r"(\\(?:boxed|fbox)\s*\{)|\\.|([{}])", re.DOTALL)
_FIRST_BOX = re.compile(r"\\(?:boxed|fbox)")
_BARE_BOX = re.compile(r"\\boxed\s+([^\s${}\\]+)")

_UNICODE = str.maketrans(
    {
        "\N{MINUS SIGN}": "-",
        "\N{EN DASH}": "-",
        "\N{FULLWIDTH PERCENT SIGN}": "%",
        "\N{MULTIPLICATION SIGN}": r"\times ",
        "\N{MIDDLE DOT}": r"\cdot ",
        "\N{INFINITY}": r"\infty ",
        "\N{DEGREE SIGN}": r"^\circ ",
        "\N{LESS-THAN OR EQUAL TO}": r"\le ",
        "\N{GREATER-THAN OR EQUAL TO}": r"\ge ",
        "\N{GREEK SMALL LETTER PI}": r"\pi ",
        "\N{UNION}": r"\cup ",
        "\N{EMPTY SET}": r"\emptyset ",
    }
)

_REWRITES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?<!\\)\\!", ""),
        (r"(?<!\\)\\[,;: ]|~|\\q?quad(?![a-zA-Z])|\s+", " "),
        (r"(?<!\\)\\([%$])", r"\1"),
        (r"\{,\}", ","),
        (r"\\(?:left|right|displaystyle)(?![a-zA-Z])", ""),
        (r"\\(?:mbox|text(?:bf|it|rm|normal)|math(?:rm|bf|it))(?![a-zA-Z])", r"\\text"),
        (r"\\leq(?:slant)?(?![a-zA-Z])|<=", r"\\le "),
        (r"\\geq(?:slant)?(?![a-zA-Z])|>=", r"\\ge "),
        (r"\\varnothing(?![a-zA-Z])", r"\\emptyset"),
        (r"\^ ?\{ ?\\circ ?\}|\^ ?\\circ(?![a-zA-Z])|\\degree(?![a-zA-Z])", "°"),
        # \frac12, \frac1{2} and \frac{1}2 have arguments of one character.
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\frac ?(\d) ?(\d)", r"\\frac{\1}{\2}"),
        (r"\\frac ?(\d) ?\{", r"\\frac{\1}{"),
        (r"\\frac ?(\{[^{}]*\}) ?(\d)", r"\\frac\1{\2}"),
        (r"\\sqrt ?(\d)", r"\\sqrt{\1}"),
        (r"([_^]) ?\{ ?(\w) ?\}", r"\1\2"),
        # A space says something between a command and a letter ("\sin x") and between digits ("3 1/2"), only there.
        (r"(\\[a-zA-Z]+) +(?=[a-zA-Z])", "\\1\0"),
        (r" +", " "),
        (r"(?<!\d) | (?!\d)", ""),
        ("\0", " "),
    )
)
_NOTHING_TO_DO = re.compile(r"-?\d+(?:[./]\d+)?", re.ASCII)
_WRAPPERS = (("$", "$"), (r"\(", r"\)"), ("{", "}"))
_E_NOTATION = re.compile(r"(?<![\w.])(\d+(?:\.\d*)?|\.\d+)[eE]([+-]?\d{1,3})(?![\w.])")
_TEXT = re.compile(r"\\text ?\{([^{}]*)\}")


def last_boxed(text: str) -> str | None:
    r"""The content of the box that opens last among those that are closed.

    Braces must balance; ``\{`` and ``\}`` are not braces. ``\fbox{5}`` and the bare ``\boxed 5`` are boxes too. Time is
    linear in the length of the text, whatever it holds.
    """
    first = _FIRST_BOX.search(text)
    if first is None:
        return None
    opened: list[int | None] = []
    start, end = -1, -1
    for token in _TOKENS.finditer(text, first.start()):
        if token[1]:
            opened.append(token.end())
        elif token[2] == "{":
            opened.append(None)
        elif token[2] == "}" and opened:
            box = opened.pop()
            if box is not None and box > start:
                start, end = box, token.start()
    if start < 0:
        bare = _BARE_BOX.findall(text)
        return bare[-1] if bare else None
    return text[start:end].strip()


def tidy(answer: str) -> str:
    """The answer without the dollars, braces and dot around it, and with ``3.2e5`` as a power of ten."""
    text = answer.translate(_UNICODE).strip()
    for opening, closing in _WRAPPERS:
        inner = text[len(opening) : -len(closing)]
        if text.startswith(opening) and text.endswith(closing) and opening not in inner and closing not in inner:
            text = inner.strip()
    if text.endswith(".") and not text.endswith(".."):
        text = text[:-1].rstrip()
    return _E_NOTATION.sub(r"\1\\times 10^{\2}", text)


def normalize_answer(answer: str) -> str:
    r"""One spelling of an answer; ``\text{...}`` stays, since a unit is not a product of letters.

    Example: ``\dfrac 12`` and ``{ \frac{1}{2} }.`` are both ``\frac{1}{2}``.
    """
    if _NOTHING_TO_DO.fullmatch(answer):
        return answer
    text = tidy(answer)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return text


def quick_verdict(truth: str, answer: str) -> bool | None:
    """Whether an answer is right, as far as its spelling tells.

    True needs equal spellings after normalisation or equal plain numbers; False needs two plain numbers that differ
    (or two numbers in given bases that differ). Time is linear in the length of the answers.
    """
    left, right = normalize_answer(truth), normalize_answer(answer)
    if not left or not right:
        return False
    if _TEXT.sub(r"\1", left) == _TEXT.sub(r"\1", right):  # "east" may answer "\text{east}"
        return True
    first, second = read_plain_number(left), read_plain_number(right)
    if first is not None and second is not None:
        return compare_plain_numbers(first, second)
    return compare_based_numbers(left, right)
