r"""The last ``\boxed{...}`` of a text.

Takes a response or a solution, gives the content of the box, or None.
"""

import re

# An opening box, an escaped character (so that \{ and \} are not braces), or a brace.
_TOKENS = re.compile(r"(\\(?:boxed|fbox)\s*\{)|\\.|([{}])", re.DOTALL)
_FIRST_BOX = re.compile(r"\\(?:boxed|fbox)")
_BARE_BOX = re.compile(r"\\boxed\s+([^\s${}\\]+)")


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
