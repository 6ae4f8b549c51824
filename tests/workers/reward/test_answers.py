import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.reward.answers import last_boxed, quick_verdict
from workers.reward.arithmetic import Number
from workers.reward.notation import normalize_answer, with_spaces
from workers.reward.quantity import Quantity, read_quantity
from workers.reward.units import find_unit


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{1} no, \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\text{a {nested} one}} done", r"\text{a {nested} one}"),
        (r"\boxed {7}", "7"),
        (r"\fbox{7}", "7"),
        (r"\boxed 7 and", "7"),
        # Escaped braces are no braces: the unmatched one of \left\{ does not keep the box open.
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        # The inner box opens last.
        (r"\boxed{\boxed{5}}", "5"),
        # A response cut off within its last box still has the one before.
        (r"\boxed{5} so \boxed{6", "5"),
        (r"$\left.{ \boxed{ 3 } }$}", "3"),
        (r"\boxed{}", ""),
        ("no box", None),
        (r"\boxed{never closed", None),
        (r"\boxed", None),
        ("", None),
    ],
)
def test_last_boxed(text: str, content: str | None):
    assert last_boxed(text) == content


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{" * 100_000,
        r"\boxed{" + "{" * 100_000,
        r"\boxed{" * 50_000 + "}" * 50_000,
        r"\boxed{" + "}{" * 100_000,
        r"\boxed " * 100_000,
        "\\" * 200_001,
    ],
)
def test_hostile_texts_take_linear_time(text: str):
    begin = time.process_time()
    last_boxed(text)
    assert time.process_time() - begin < 2.0


EQUAL = [
    ("42", "42"),
    ("42", "42."),
    ("42", " {42} "),
    ("42", "$42$"),
    ("42", "x=42"),
    ("50", r"50\%"),
    ("50", "50%"),
    ("1/2", r"50\%"),
    ("0.5", r"50\%"),
    (r"\frac{5}{100}", r"5\text{ percent}"),
    ("3.2e5", r"3.2\times 10^5"),
    ("320000", "3.2e5"),
    ("320,000", r"3.2 \cdot 10^{5}"),
    ("0.001", r"10^{-3}"),
    ("1000", r"1,\!000"),
    ("1000", "1{,}000"),
    ("1234567.5", "1,234,567.50"),
    ("0.5", ".5"),
    ("-0.5", "\N{MINUS SIGN}1/2"),
    ("-1/2", r"\frac{1}{-2}"),
    (r"\frac{3}{4}", r"\dfrac 34"),
    (r"\frac34", "6/8"),
    (r"\frac{1}{2}", r"\frac1{2}"),
    ("3.5", r"3\frac{1}{2}"),
    ("7/2", "3 1/2"),
    ("0", "-0.0"),
    ("45", r"45^\circ"),
    ("45", r"45^{\circ}"),
    ("45", r"45\text{ degrees}"),
    ("5", r"5\text{ cm}"),
    (r"5\,\text{cm}^2", "5 \\mathrm{cm^2}"),
    (r"\$5", "5.00"),
    (r"\text{east}", "east"),
    (r"\text{no solution}", r"\textbf{no  solution}"),
    ("(1,2)", r"\left( 1, 2 \right)"),
    (r"\{1, 2\}", r"\left\{1,2\right\}"),
    (r"[1,\infty)", r"\left[ 1, \infty \right)"),
    (r"x \le 3", r"x\leq3"),
    (r"x \geqslant 3", "x>=3"),
    (r"\emptyset", r"\varnothing"),
    ("x^{2}+1", "x^2 + 1"),
    (r"\sqrt{3}", r"\sqrt3"),
    ("101_2", "101_{2}"),
]

DIFFERENT = [
    ("42", "43"),
    ("42", "-42"),
    ("0.5", "50"),
    ("12", r"0.12\%"),
    (r"12\%", r"0.12\%"),
    ("1/3", "0.333"),
    ("1/3", "1/4"),
    ("31/2", "3 1/2"),
    (r"\frac{1}{2}", r"\frac{2}{1}"),
    ("1.0001", "1"),
    (r"3.2\times 10^{-9}", r"5\times 10^{-9}"),
    (r"5\text{ cm}", r"6\text{ cm}"),
    ("101_3", "101_2"),
    ("42", "."),
]

OPEN = [
    ("1/3", "0.3333333"),  # a rounding of it, or a slip
    (r"2\pi\text{ m}", r"\pi\text{ m}"),
    (r"2\pi\text{ m}", r"\pi\text{ cm}"),
    ("5m", "5"),  # metres, or a product
    ("x=5", "y=5"),
    ("x_2", "2"),
    ("1,2", "2,1"),
    ("1,23", "123"),
    (r"(-\infty,3]", r"x \le 3"),
    ("x+1", "1+x"),
    (r"2\frac{3}{2}", "3"),
    (r"\frac{1}{0}", "5"),
    ("10^12", r"10^{12}"),  # LaTeX reads the first as 10^1 2
    ("10^{10^{10}}", "5"),
    ("1e9999", "5"),
    ("0.333...", "1/3"),
    (r"\sin x", r"\sin y"),
    ("A", "B"),
]


@pytest.mark.parametrize(("truth", "answer"), EQUAL)
def test_equal(truth: str, answer: str):
    assert quick_verdict(truth, answer) is True
    assert quick_verdict(answer, truth) is True


@pytest.mark.parametrize(("truth", "answer"), DIFFERENT)
def test_different(truth: str, answer: str):
    assert quick_verdict(truth, answer) is False
    assert quick_verdict(answer, truth) is False


@pytest.mark.parametrize(("truth", "answer"), OPEN)
def test_left_open(truth: str, answer: str):
    assert isinstance(quick_verdict(truth, answer), tuple)
    assert isinstance(quick_verdict(answer, truth), tuple)


def test_a_unit_leaves_the_open_pair_and_its_size_stays():
    pi_metres = r"2\pi\text{ m}"
    assert quick_verdict(pi_metres, r"\pi\text{ m}") == ((r"2\pi", r"\pi"),)
    assert quick_verdict(pi_metres, r"\pi\text{ cm}") == ((r"(2\pi)\cdot 100", r"\pi"),)
    assert quick_verdict(r"\pi\text{ million}", r"3\pi") == ((r"(\pi)\cdot 1000000", r"3\pi"),)
    # The items of a list that are open are all asked.
    assert quick_verdict(r"1,x,\ldots,y", r"1,z,\ldots,u") == (("x", "z"), ("y", "u"))


def spellings(value: Fraction) -> st.SearchStrategy[str]:
    """Ways to write an exact rational."""
    top, bottom = value.numerator, value.denominator
    ways = [f"{top}/{bottom}", rf"\frac{{{top}}}{{{bottom}}}", rf"\dfrac{{{2 * top}}}{{{2 * bottom}}}"]
    if value < 0:
        ways.append(rf"-\frac{{{-top}}}{{{bottom}}}")
    if value > 1 and bottom > 1:
        ways.append(rf"{top // bottom}\frac{{{top % bottom}}}{{{bottom}}}")
        ways.append(f"{top // bottom} {top % bottom}/{bottom}")
    if bottom == 1:
        ways += [str(top), f"{top}.", f"{top}.0", f"{top:,}", rf"{top}\text{{ cm}}"]
    if 1000 % bottom == 0:
        ways.append(f"{float(value):.3f}")
    return st.sampled_from([f"${way}$" for way in ways] + ways)


rationals = st.fractions(min_value=-2000, max_value=2000, max_denominator=40)


@given(st.data(), rationals)
def test_spellings_of_one_number_are_equal(data: st.DataObject, value: Fraction):
    assert quick_verdict(data.draw(spellings(value)), data.draw(spellings(value))) is True


@given(st.data(), rationals, rationals)
def test_spellings_of_two_numbers_are_never_equal(data: st.DataObject, left: Fraction, right: Fraction):
    if left != right:
        assert quick_verdict(data.draw(spellings(left)), data.draw(spellings(right))) is not True


ALPHABET = st.text(alphabet=r"0123456789+-*/^_.,{}()[]\$% xfractimes10eE", max_size=40)


@given(ALPHABET, ALPHABET)
def test_any_text_has_a_verdict_and_order_does_not_matter(left: str, right: str):
    verdict, reverse = quick_verdict(left, right), quick_verdict(right, left)
    assert (verdict if isinstance(verdict, bool) else "open") == (reverse if isinstance(reverse, bool) else "open")


@given(ALPHABET)
def test_normalisation_reaches_an_end(text: str):
    once = normalize_answer(text)
    assert quick_verdict(text, once) is not False or not once


def test_a_quantity_keeps_what_stands_around_its_number():
    square_centimetre = find_unit("cm")
    assert square_centimetre is not None
    assert read_quantity(with_spaces(r"x = -3\tfrac12 \text{ million cm}^2")) == Quantity(
        core=r"-3\frac{1}{2}",
        number=Number(Fraction(-7 * 10**6, 2)),
        factor=Fraction(10**6),
        unit=square_centimetre.power(2),
        variable="x",
    )


@pytest.mark.parametrize(
    "answer",
    [
        "9" * 100_000,
        "1," * 50_000,
        "1 " * 50_000,
        "{" * 100_000,
        r"\frac" * 20_000,
        r"\frac{" * 20_000,
        r"\text{" * 20_000,
        "1e9" * 30_000,
        "^{" * 50_000,
        " " * 100_000 + "x",
        "." * 100_000,
        r"10^{999}",
        "1e" + "9" * 1000,
        "1/" + "0" * 1000,
        "10^{10^{10}}",
        "9^{9999}" * 14,
        "(" * 64 + "1" + ")" * 63,
        "1 a " * 31,
        "1 m, " * 25,
        "5" + " cm" * 40,
        r"\text{5 cm}" * 11,
        "sqrt(" * 20_000,
        "1 000" * 20_000,
        "\N{SUPERSCRIPT TWO}" * 100_000,
        "1,m " * 25_000,
    ],
)
def test_hostile_answers_take_linear_time(answer: str):
    begin = time.process_time()
    assert quick_verdict("42", answer) is not True
    assert time.process_time() - begin < 2.0
