"""Every key of a recipe with its type, default and meaning, read from the dataclasses: writes docs/configuration.md.

python -m trainer.config.reference > docs/configuration.md
"""

import ast
import dataclasses
import inspect
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

from trainer.config.foreign import FOREIGN, FOREIGN_VALUES
from trainer.config.schema import Config

HEADER = """# Configuration

A recipe is a YAML file; `key=value` words on the command line follow it and win. Unknown keys, wrong types and rules that do
not hold are reported together, with the nearest key or the legal values nearby, before anything starts; `cfpo check RECIPE`
does just that. `policy_loss` takes the chosen loss's own knobs as further keys (`cfpo losses` lists them).

**Texts.** A setting that is a text is what was written, whatever YAML makes of it: `model.revision=0123456`, `12e8`,
`trainer.project=no`, `runs/[a]` and `2026-11-27` need no quotes. `null`, `~` or nothing at all clears a text that may be
null; `"null"` in quotes is the word. `${trainer.project}` takes the value of another setting; `\\${` stands for these two
characters. A setting that is a number may stand in quotes.

**Lists and mappings.** One value for a list is a list of one, and a list takes the place of the one before. The entries of a
mapping are settings of their own: `algorithm.advantage_knobs.k=4`. `{}` or `null` takes out those of earlier places.

**What goes together.** Where a later place names another loss or advantage, the knobs that earlier places gave to the old
one are dropped; likewise `reward.pass_threshold` with `reward.name`.

Keys of verl, TRL and other trainers are answered with ours: [the table](#coming-from-verl-or-trl).

This page is written by `python -m trainer.config.reference`.
"""


FOREIGN_HEADER = """## Coming from verl or TRL

Keys of verl, TRL, OpenRLHF, slime and NeMo-RL, by their last names, and the keys that mean the same here. A wrong key is
answered with ours in whatever section it stands, e.g. `actor_rollout_ref.actor.optim.lr` with `actor.lr`.

| theirs | ours | |
|---|---|---|"""

NAMES_HEADER = """
Names that are called otherwise here:

| key | theirs | ours | |
|---|---|---|---|"""


def reference() -> str:
    """The page."""
    parts = [HEADER]
    for section in dataclasses.fields(Config):
        rows = list(_rows(section.name, section.type))
        parts.append(
            f"## {section.name}\n\n| key | type | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
        )
    return "\n".join([*parts, *_foreign()])


def _foreign() -> Iterator[str]:
    """The words of other trainers."""
    yield FOREIGN_HEADER
    for row in FOREIGN:
        theirs, ours = (", ".join(f"`{word}`" for word in words) for words in (row.words, row.keys))
        yield f"| {theirs} | {ours} | {row.note}".rstrip() + " |"
    yield NAMES_HEADER
    for key, names in FOREIGN_VALUES.items():
        for theirs, (ours, note) in names.items():
            yield f"| `{key}` | `{theirs}` | `{ours}` | {note}".rstrip() + " |"
    yield ""


def _rows(prefix: str, kind: Any) -> Iterator[str]:
    meanings = _meanings(kind)
    for item in dataclasses.fields(kind):
        key = f"{prefix}.{item.name}"
        if dataclasses.is_dataclass(item.type):
            yield from _rows(key, item.type)
        elif key != "policy_loss.knobs":
            yield f"| `{key}` | {_type_name(item.type)} | {_default(item)} | {meanings.get(item.name, '')} |"


def _meanings(kind: type) -> dict[str, str]:
    """The strings below the fields of a dataclass, by field."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            text = following.value if isinstance(following, ast.Expr) else None
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                found[statement.target.id] = " ".join(text.value.split()).replace("``", "`").replace("|", "\\|")
    return found


def _type_name(kind: Any) -> str:
    name = kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind)
    return name.replace("|", "\\|")


def _default(item: dataclasses.Field[Any]) -> str:
    value = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
    return "required" if value in ("???", dataclasses.MISSING) else f"`{value}`"


if __name__ == "__main__":
    sys.stdout.write(reference())
