"""Tier one of the math reward: decides at once what needs no algebra, and leaves the rest open.

Takes a boxed answer and the reference answer, gives True, False, or None for "open".
"""

from workers.reward.normalize import normalize_answer, without_text_markup
from workers.reward.plain_number import compare_based_numbers, compare_plain_numbers, read_plain_number


def quick_verdict(truth: str, answer: str) -> bool | None:
    """Whether an answer is right, as far as its spelling tells.

    True needs equal spellings after normalisation or equal plain numbers; False needs two plain numbers that differ
    (or two numbers in given bases that differ). Time is linear in the length of the answers.
    """
    left, right = normalize_answer(truth), normalize_answer(answer)
    if not left or not right:
        return False
    if without_text_markup(left) == without_text_markup(right):
        return True
    first, second = read_plain_number(left), read_plain_number(right)
    if first is not None and second is not None:
        return compare_plain_numbers(first, second)
    return compare_based_numbers(left, right)
