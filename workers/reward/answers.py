r"""Answers: the box they stand in, and a verdict where spelling, numbers and units suffice."""

import re

from workers.reward.notation import tidy, with_spaces, without_spaces
from workers.reward.quantity import Pair, compare_quantities, read_quantity

MAX_ITEMS = 24
"""Longer lists are compared in their order only."""

# An opening box, an escaped character (so that \{ and \} are not braces), or a brace.
_TOKENS = re.compile(r"(\\(?:boxed|fbox)\s*\{)|\\.|([{}])", re.DOTALL)
_FIRST_BOX = re.compile(r"\\(?:boxed|fbox)")
_BARE_BOX = re.compile(r"\\boxed\s+([^\s${}\\]+)")
_TEXT = re.compile(r"\\text ?\{([^{}]*)\}")
_DOTS = "\\ldots"
_SEPARATOR = re.compile(
    r"\\text ?\{ ?(?:,|and|or|, ?and|, ?or) ?\}| and | or |(?P<opening>\\?[{(\[])|(?P<closing>\\?[})\]])|[,;]"
)
_BRACKETS = {"(": ")", "[": "]", "\\{": "\\}"}

Verdict = bool | tuple[Pair, ...]
"""Right or wrong, or the pairs that must all be equal for it to be right."""


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


def quick_verdict(truth: str, answer: str) -> Verdict:
    r"""Whether an answer is right, as far as spelling, numbers and units tell; else the pairs that must all be equal.

    The pairs are written for math-verify and have no units left. Time is linear in the length of the answers.

    Example: "5 cm" and "5 m" are different; of ``8\pi\text{ cm}`` and ``2\pi\cdot 4`` the cores are left open.
    """
    left, right = with_spaces(truth), with_spaces(answer)
    if not left or not right:
        return False
    if _bare(left) == _bare(right):  # "east" may answer "\text{east}"
        return True
    first, second = read_quantity(left), read_quantity(right)
    are_numbers = first is not None and second is not None and first.number is not None and second.number is not None
    found: Verdict | Pair | None = None if are_numbers else _compare_lists(left, right)
    if found is None and first is not None and second is not None:
        pair = compare_quantities(first, second)
        found = pair if pair is None or isinstance(pair, bool) else (pair,)
    return ((tidy(truth), tidy(answer)),) if found is None else found


def _bare(spelling: str) -> str:
    return _TEXT.sub(r"\1", without_spaces(spelling))


def _compare_lists(left: str, right: str) -> Verdict | None:
    """Lists item by item, where math-verify would not see what tells them apart: units, bases, times, dots; else None.

    Items keep their order in brackets and where dots go on with it; those of a bare list or a set may stand in any.
    """
    (bracket, truths), (other_bracket, answers) = _items(left), _items(right)
    same_kind = bracket == other_bracket or {bracket, other_bracket} == {"", "\\{"}
    if min(len(truths), len(answers)) < 2 or not same_kind:
        return None
    dots = _DOTS in truths or _DOTS in answers
    if not dots and not any(map(_needs_reading, truths + answers)):
        return None
    if dots or bracket in ("(", "[") or len(truths) + len(answers) > MAX_ITEMS:
        return _in_order(truths, answers)
    return _in_any_order(truths, answers)


def _in_order(truths: list[str], answers: list[str]) -> Verdict:
    if len(truths) != len(answers):
        return False
    open_pairs: list[Pair] = []
    for truth, answer in zip(truths, answers, strict=True):
        verdict = truth == answer if _DOTS in (truth, answer) else quick_verdict(truth, answer)
        if verdict is False:
            return False
        open_pairs += [] if verdict is True else verdict
    return tuple(open_pairs) or True


def _in_any_order(truths: list[str], answers: list[str]) -> Verdict:
    """As sets; where an item is open, in their order."""
    table = [[quick_verdict(truth, answer) for answer in answers] for truth in truths]
    if any(isinstance(verdict, tuple) for row in table for verdict in row):
        return _in_order(truths, answers)
    return all(map(any, table)) and all(map(any, zip(*table, strict=True)))


def _items(spelling: str) -> tuple[str, list[str]]:
    """The bracket around a list and its items; the whole as one item where it is no list."""
    bracket = next((one for one in ("\\{", "(", "[") if spelling.startswith(one)), "")
    if bracket and spelling.endswith(_BRACKETS[bracket]):
        items = _split(spelling[len(bracket) : -len(bracket)])
        if items is not None:
            return bracket, items
    return "", _split(spelling) or [spelling]


def _split(text: str) -> list[str] | None:
    """The items between separators that no bracket holds; None where brackets do not balance."""
    items, start, depth = [], 0, 0
    for token in _SEPARATOR.finditer(text):
        depth += (token["opening"] is not None) - (token["closing"] is not None)
        if depth < 0:
            return None
        if depth == 0 and token["opening"] is token["closing"] is None:
            items.append(text[start : token.start()].strip())
            start = token.end()
    items.append(text[start:].strip())
    return [item for item in items if item] if depth == 0 else None


def _needs_reading(item: str) -> bool:
    quantity = read_quantity(item)
    return quantity is not None and not quantity.is_plain
