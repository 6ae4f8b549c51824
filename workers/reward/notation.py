r"""One notation for answers: what never changes the meaning of an answer is spelled one way, Unicode and plain text too.

``tidy`` writes LaTeX that math-verify reads, ``normalize_answer`` goes on to a spelling that is compared as it stands.
"""

import re
import unicodedata

_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿ"
_SUBSCRIPTS = "₀₁₂₃₄₅₆₇₈₉"
_RAISED = re.compile(rf"[{_SUPERSCRIPTS}]+")
_LOWERED = re.compile(rf"[{_SUBSCRIPTS}]+")
_FRACTION = re.compile("[¼-¾⅐-⅞]")
_ROOT = re.compile(r"√\s*(\d+|[a-zA-Z])?")

_SIGNS = str.maketrans(
    {
        "\N{MINUS SIGN}": "-",
        "\N{EN DASH}": "-",
        "\N{HYPHEN}": "-",
        "\N{MULTIPLICATION SIGN}": r"\times ",
        "\N{DIVISION SIGN}": r"\div ",
        "\N{DOT OPERATOR}": r"\cdot ",
        "\N{MIDDLE DOT}": r"\cdot ",
        "\N{RATIO}": ":",
        "\N{PLUS-MINUS SIGN}": r"\pm ",
        "\N{INFINITY}": r"\infty ",
        "\N{LESS-THAN OR EQUAL TO}": r"\le ",
        "\N{GREATER-THAN OR EQUAL TO}": r"\ge ",
        "\N{NOT EQUAL TO}": r"\ne ",
        "\N{ELEMENT OF}": r"\in ",
        "\N{UNION}": r"\cup ",
        "\N{INTERSECTION}": r"\cap ",
        "\N{EMPTY SET}": r"\emptyset ",
        "\N{FRACTION SLASH}": "/",
        "\N{DIVISION SLASH}": "/",
        "\N{MASCULINE ORDINAL INDICATOR}": "°",
        "\N{IDEOGRAPHIC FULL STOP}": ".",
        "\N{ZERO WIDTH SPACE}": None,
        "\N{WORD JOINER}": None,
        "\N{ZERO WIDTH NO-BREAK SPACE}": None,
    }
    | {
        # The names of Unicode are those of LaTeX, but for "lamda" and the final sigma.
        chr(code): rf"\{unicodedata.name(chr(code)).rpartition(' ')[2].lower().replace('lamda', 'lambda')} "
        for code in range(0x03B1, 0x03C9 + 1)  # alpha to omega
        if code not in (0x03BC, 0x03BF, 0x03C2)  # mu may be "micro"; LaTeX has no omicron
    }
)

_WRAPPERS = (("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("{", "}"))
_E_NOTATION = re.compile(r"(?<![\w.])(\d+(?:\.\d*)?|\.\d+)[eE]([+-]?\d{1,3})(?![\w.])")

Rewrites = tuple[tuple[re.Pattern[str], str], ...]


def _compiled(*rules: tuple[str, str]) -> Rewrites:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in rules)


_TIDY = _compiled(
    # Dollars around a formula, by pandoc's rule: no space within them, no digit behind them. "\$5" is money.
    (r"(?<!\\)\$(?=\S)([^$]*[^$\s\\])\$(?!\d)", r"\1"),
    (
        r"(?<!\\)\\(?:underline|fbox|bm|boldsymbol|mathbf|textbf|emph|mathit|textit|mathsf|textsf)(?=\s*\{[^a-zA-Z{}]*\})",
        "",
    ),
    (r"(?<!\\)\\(?:underline|fbox|boxed|bm|boldsymbol)(?=\s*\{)", ""),
    (r"(?<!\\)\\(?:textcolor|color)\s*\{[a-zA-Z]+\}", ""),
    # Thousands are set apart by a thin space, or by any other.
    (r"(?<![\d.,_^])(\d{1,3})((?:(?:\\[,:; ]|~|\{,\}|,?\\!|\s)\d{3})+)(?![\d/])", "\\1\1\\2\1"),
    # What is written in plain text or in Python.
    (r"\s*\*\*\s*(-?\d+)", r"^{\1}"),
    (r"\s*\*\*\s*", "^"),
    (r"(?<![\\a-zA-Z])sqrt\s*\(((?:[^()]|\([^()]*\))*)\)", r"\\sqrt{\1}"),
    (
        r"(?<![\\a-zA-Z])(a(?:rc)?)?(sinh|cosh|tanh|sin|cos|tan)(?=\s*[(^\d]|\s+\\?[a-zA-Z]|[xyzt](?![a-zA-Z]))",
        r"\\\1\2 ",
    ),
    (r"(?<![\\a-zA-Z])(ln|log|exp|sqrt)(?=\s*[({^_\d]|\s+\\?[a-zA-Z]\b)", r"\\\1 "),
    (r"(?<![\\a-zA-Z])(pi|infty|alpha|beta|gamma|delta|theta|lambda|omega|sigma|phi)(?![a-zA-Z])", r"\\\1 "),
    (r"(?<![\\a-zA-Z])(?:infinity|inf|oo)(?![a-zA-Z])", r"\\infty "),
    (r"\\a(sin|cos|tan)(?![a-zA-Z])", r"\\arc\1"),
)
_GROUPED = re.compile("\1([^\1]*)\1")

_NORMALIZE = _compiled(
    (r"(?<!\\)\\!", ""),
    (r"(?<!\\)\\[,;: ]|~|\\q?quad(?![a-zA-Z])|\s+", " "),
    (r"(?<!\\)\\([%$])", r"\1"),
    (r"\{,\}", ","),
    (r"\\(?:left|right|displaystyle|big|Big|bigg|Bigg)(?![a-zA-Z])", ""),
    (r"\\(?:mbox|text(?:bf|it|rm|normal)|math(?:rm|bf|it)|operatorname)(?![a-zA-Z])", r"\\text"),
    (r"\\leq(?:slant)?(?![a-zA-Z])|<=", r"\\le "),
    (r"\\geq(?:slant)?(?![a-zA-Z])|>=", r"\\ge "),
    (r"\\varnothing(?![a-zA-Z])", r"\\emptyset"),
    (r"\\(?:[lc]?dots|dotsc|dotsb)(?![a-zA-Z])|\.\.\.", r"\\ldots "),
    (r"\^ ?\{ ?\\circ ?\}|\^ ?\\circ(?![a-zA-Z])|\\degree(?![a-zA-Z])", "°"),
    # \frac12, \frac1{2} and \frac{1}2 have arguments of one character.
    (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
    (r"\\frac ?(\d) ?(\d)", r"\\frac{\1}{\2}"),
    (r"\\frac ?(\d) ?\{", r"\\frac{\1}{"),
    (r"\\frac ?(\{[^{}]*\}) ?(\d)", r"\\frac\1{\2}"),
    (r"\\sqrt ?(\d)", r"\\sqrt{\1}"),
    (r"\\(?:overline|bar|dot) ?(?:\{ ?(\d+) ?\}|(\d))", r"\\overline{\1\2}"),
    (r"([_^]) ?\{ ?(\w) ?\}", r"\1\2"),
    (r" +", " "),
)
_SPACES = _compiled(
    # A space says something between a command and a letter ("\sin x") and between digits ("3 1/2"), only there.
    (r"(\\[a-zA-Z]+) +(?=[a-zA-Z])", "\\1\0"),
    (r"(?<!\d) | (?!\d)", ""),
    ("\0", " "),
)
_NOTHING_TO_DO = re.compile(r"-?\d+(?:[./]\d+)?", re.ASCII)


def tidy(answer: str) -> str:
    """The answer in LaTeX, without what stands around it: dollars, braces, a dot at the end.

    Example: ``√2``, ``x²``, ``sqrt(2)``, ``x**2``, ``3.2e5`` and ``1 000`` are LaTeX afterwards.
    """
    text = (answer if answer.isascii() else _plain_characters(answer)).strip()
    if _NOTHING_TO_DO.fullmatch(text):
        return text
    for pattern, replacement in _TIDY:
        text = pattern.sub(replacement, text)
    text = _GROUPED.sub(lambda group: re.sub(r"\D", "", group[1]), text).strip()
    for opening, closing in _WRAPPERS:
        inner = text[len(opening) : -len(closing)]
        around = text.startswith(opening) and text.endswith(closing) and len(text) >= len(opening + closing)
        if around and _is_whole(inner, opening, closing):
            text = inner.strip()
    if text.endswith(".") and not text.endswith(".."):
        text = text[:-1].rstrip()
    return _E_NOTATION.sub(r"\1\\times 10^{\2}", text)


def with_spaces(answer: str) -> str:
    """The one spelling of an answer, its spaces still there: "5 m" may be metres where "5m" is a product."""
    text = tidy(answer)
    if _NOTHING_TO_DO.fullmatch(text):
        return text
    for pattern, replacement in _NORMALIZE:
        text = pattern.sub(replacement, text)
    return text.strip()


def without_spaces(spelling: str) -> str:
    """What ``with_spaces`` gives, less the spaces that say nothing."""
    for pattern, replacement in _SPACES:
        spelling = pattern.sub(replacement, spelling)
    return spelling


def normalize_answer(answer: str) -> str:
    r"""One spelling of an answer; ``\text{...}`` stays, since a unit is not a product of letters.

    Example: ``\dfrac 12``, ``½`` and ``{ \frac{1}{2} }.`` are all ``\frac{1}{2}``.
    """
    return without_spaces(with_spaces(answer))


def _plain_characters(text: str) -> str:
    """Unicode's own notation as LaTeX, and full-width characters as ASCII."""
    text = _RAISED.sub(lambda run: f"^{{{unicodedata.normalize('NFKC', run[0])}}}", text)
    text = _LOWERED.sub(lambda run: f"_{{{unicodedata.normalize('NFKC', run[0])}}}", text)
    text = _FRACTION.sub(_vulgar_fraction, text)
    text = _ROOT.sub(lambda root: rf"\sqrt{{{root[1]}}}" if root[1] else "sqrt", text)
    return unicodedata.normalize("NFKC", text.translate(_SIGNS)).translate(_SIGNS)


def _vulgar_fraction(sign: re.Match[str]) -> str:
    top, _, bottom = unicodedata.normalize("NFKC", sign[0]).partition("\N{FRACTION SLASH}")
    return rf"\frac{{{top}}}{{{bottom}}}"


def _is_whole(inner: str, opening: str, closing: str) -> bool:
    """Whether an opening sign at the start and a closing one at the end belong together."""
    if opening == closing:
        return opening not in inner
    depth = 0
    for token in re.finditer(rf"{re.escape(opening)}|{re.escape(closing)}", inner):
        depth += 1 if token[0] == opening else -1
        if depth < 0:
            return False
    return depth == 0
