"""One page to read responses: prompt, response, reward and its parts, advantage, truth and length.

The page is a file of its own that loads nothing. Texts are hostile: they come from a model. All of them are escaped, what
steers a terminal or the direction of writing is shown as a sign, and the page's policy lets no script run but its own.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from cfpo_hybrid.errors import DataError
from trainer.run.directory import RunDirectory
from trainer.run.files import first_rows, write_atomically

PAGE = "generations.html"
"""The page of a run or of an evaluation."""
MOST_FILES = 24
"""Files on a page: the first and the newest ones, of training and of validation each."""
MOST_RESPONSES = 1500
"""Responses on a page, in equal shares of its files."""
MOST_LETTERS = 20_000
"""Of a text; beyond it the middle is left out."""
MOST_LETTERS_OF_ALL = 20_000_000
"""Of all texts together."""

_STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ufffe\uffff\ud800-\udfff]"
)
"""Characters that are not seen and change what is seen: controls, marks of direction, halves of pairs."""

_STYLE = """
body{font-family:sans-serif;color:#333;margin:1em;line-height:1.4}
form{position:sticky;top:0;background:#fff;padding:.5em 0;border-bottom:1px solid #ccc}
form>*{margin-right:.8em}
article{border:1px solid #ddd;border-radius:4px;margin:.8em 0;padding:.5em .8em}
article[hidden]{display:none}
.above{border-left:5px solid #0072B2}.not-above{border-left:5px solid #D55E00}
pre{white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:isolate;background:#f7f7f7;padding:.5em;margin:.2em 0}
p,summary{margin:.2em 0}summary{cursor:pointer;color:#555}.note{color:#555;font-size:.9em}
"""
_SCRIPT = """
const form = document.querySelector("form"), list = document.querySelector("main");
const all = Array.from(list.children);
const number = (one, key) => one.dataset[key] === "" ? -Infinity : Number(one.dataset[key]);
function show() {
  const words = form.words.value.toLowerCase(), key = form.order.value, sign = form.down.checked ? -1 : 1;
  let count = 0;
  for (const one of all) {
    const kept = (!form.file.value || one.dataset.file === form.file.value)
      && (!form.cut.value || one.dataset.cut === form.cut.value)
      && (form.low.value === "" || number(one, "reward") >= Number(form.low.value))
      && (form.high.value === "" || number(one, "reward") <= Number(form.high.value))
      && (!words || one.textContent.toLowerCase().includes(words));
    one.hidden = !kept;
    count += kept;
  }
  const order = (a, b) => sign * (number(a, key) - number(b, key)) || number(a, "place") - number(b, "place");
  list.append(...all.sort(order));
  document.querySelector("output").value = count + " of " + all.length + " shown";
}
form.addEventListener("input", show);
form.addEventListener("submit", event => event.preventDefault());
show();
"""
_ORDERS = {
    "place": "order of the files",
    "reward": "reward",
    "advantage": "advantage",
    "length": "length",
    "step": "step",
}


def write_run_page(run_dir: str | Path, page: Path | None = None) -> Path:
    """Writes the page of a run, which may still be going on.

    Args:
        run_dir: of the run.
        page: the file to write; by default ``generations.html`` in that directory.

    Raises:
        DataError: the run has saved no responses yet, or a file of them is malformed.
    """
    run = RunDirectory(run_dir)
    kinds = [run.generation_files(prefix) for prefix in ("", "val_")]
    files = [file for found in kinds for file in _first_and_newest(found)]
    if not files:
        raise DataError(
            f"'{run_dir}' has no responses to show in generations/; set trainer.generations_every above 0, or name a file "
            "of responses"
        )
    left_out = sum(map(len, kinds)) - len(files)
    notes = [f"{left_out} files between the first and the newest ones are not on this page."] if left_out else []
    system_prompt = (run.config().get("data") or {}).get("system_prompt")
    title = f"Responses of {run.path.resolve().name}"
    return write_page(files, page or run.path / PAGE, title=title, notes=notes, system=system_prompt)


def write_page(
    files: Sequence[Path], page: Path, *, title: str, notes: Sequence[str] = (), system: str | None = None
) -> Path:
    """Writes a page of the responses in these files.

    Args:
        files: JSON lines, as a run or an evaluation saves them.
        page: the file to write.
        title: of the page.
        notes: lines below it.
        system: the system prompt; None for none.

    Raises:
        DataError: a file that holds no JSON lines.
    """
    share = max(1, MOST_RESPONSES // len(files))
    articles: list[str] = []
    said, letters = list(notes), 0
    for file in files:
        rows, total = first_rows(file, share)
        shown = 0
        for row in rows:
            article = _article(row, file, len(articles))
            if letters + len(article) > MOST_LETTERS_OF_ALL:
                break
            articles.append(article)
            letters, shown = letters + len(article), shown + 1
        first = "all" if shown == total else f"the first {shown} of"
        said.append(f"{file.name}: {first} {total} responses.")
    policy = f"default-src 'none'; style-src '{_digest(_STYLE)}'; script-src '{_digest(_SCRIPT)}'"
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{_text(title)}</h1>",
        *([f"<p>System prompt:</p><pre dir=auto>{_text(system)}</pre>"] if system else []),
        f"<details><summary>{len(articles)} responses of {len(files)} files</summary>",
        *(f'<p class="note">{_text(line)}</p>' for line in said),
        "</details>",
        _form(files),
        "<main>",
        *articles,
        f"</main><script>{_SCRIPT}</script></body></html>\n",
    ]
    write_atomically(page, "\n".join(parts))
    return page


def _first_and_newest(files: Sequence[Path]) -> list[Path]:
    return [*files[:1], *files[1:][-(MOST_FILES // 2 - 1) :]]


def _form(files: Sequence[Path]) -> str:
    names = "".join(f'<option value="{_text(file.stem)}">{_text(file.stem)}</option>' for file in files)
    orders = "".join(f'<option value="{key}">{words}</option>' for key, words in _ORDERS.items())
    return (
        f'<form><label>file <select name="file"><option value="">all</option>{names}</select></label>'
        '<label>cut <select name="cut"><option value="">all</option><option value="1">at the limit</option>'
        '<option value="0">ended</option></select></label>'
        '<label>reward from <input name="low" type="number" step="any" size="6"></label>'
        '<label>to <input name="high" type="number" step="any" size="6"></label>'
        '<label>with the words <input name="words" type="search"></label>'
        f'<label>by <select name="order">{orders}</select></label>'
        '<label><input name="down" type="checkbox"> largest first</label><output></output></form>'
    )


def _article(row: Mapping[str, Any], file: Path, place: int) -> str:
    reward, cut = row.get("reward"), row.get("truncated")
    step = re.search(r"\d+$", file.stem)
    data = {
        "place": place,
        "file": file.stem,
        "step": int(step[0]) if step else 0,
        "reward": reward,
        "advantage": row.get("advantage"),
        "length": row.get("response_length"),
        "cut": None if cut is None else int(bool(cut)),
    }
    attributes = " ".join(f'data-{key}="{"" if value is None else _text(value)}"' for key, value in data.items())
    kind = "above" if isinstance(reward, int | float) and reward > 0 else "not-above"
    prompt = row.get("prompt", row.get("problem"))
    return (
        f'<article class="{kind}" {attributes}><p>{" · ".join(_facts(row, file))}</p>'
        f"<details><summary>prompt</summary>{_block(prompt)}</details>"
        f"{_block(row.get('response'))}</article>"
    )


def _facts(row: Mapping[str, Any], file: Path) -> Iterator[str]:
    yield _text(f"{row['set']}, {file.stem}" if row.get("set") else file.stem)
    yield f"reward <b>{_number(row.get('reward'))}</b>"
    parts = row.get("reward_parts")
    if isinstance(parts, Mapping) and parts:
        yield ", ".join(f"{_text(name)} {_number(value)}" for name, value in parts.items())
    if "advantage" in row:
        yield f"advantage {_number(row['advantage'])}"
    yield f"truth <bdi>{_text(_shortened(str(row.get('ground_truth', ''))))}</bdi>"
    yield f"{_number(row.get('response_length'))} tokens" + (", cut at the limit" if row.get("truncated") else "")


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "none" if value is None else _text(value)


def _block(value: Any) -> str:
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value)
    return f"<pre dir=auto>\n{_text(_shortened(text))}</pre>"  # the first line end of a pre is not shown


def _shortened(text: str) -> str:
    if len(text) <= MOST_LETTERS:
        return text
    head, tail = MOST_LETTERS * 3 // 4, MOST_LETTERS // 4
    return f"{text[:head]}\n[{len(text) - head - tail} letters left out; the file has them]\n{text[-tail:]}"


def _text(value: Any) -> str:
    """Escaped for HTML, in attributes too; characters that steer are shown by their code."""
    return _STEERING.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", escape(str(value), quote=True))


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
