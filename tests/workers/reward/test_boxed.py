import time

import pytest

from workers.reward.boxed import last_boxed


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
