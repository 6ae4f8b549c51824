"""The page of responses: hostile texts stay texts, large runs are cut and say so, `cfpo show` finds what there is."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from trainer import cli
from trainer.figures import generations_page
from trainer.run.directory import RunDirectory

HOSTILE = (
    "</pre></script><script>alert(1)</script><img src=x onerror=alert(2)>\x00\x1b[2J\u202egnp.exe\ud800 \" ' &amp; end"
)


def row(**changes) -> dict:
    usual = {"prompt": "<|user|>1+1", "response": r"\boxed{2}", "reward": 1.0, "ground_truth": "2", "advantage": -0.5}
    return {**usual, "response_length": 7, "truncated": False, **changes}


class Elements(HTMLParser):
    """What a browser makes of a page: tags by number, and the texts of the blocks."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.blocks: list[str] = []
        self.attributes: list[dict] = []
        self._inside = False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._inside = tag == "pre"
        self.blocks += [""] if self._inside else []
        if tag == "article":
            self.attributes.append(dict(attrs))

    def handle_endtag(self, tag):
        self._inside = self._inside and tag != "pre"

    def handle_data(self, data):
        if self._inside:
            self.blocks[-1] += data


def page_of(folder: Path, rows: dict[str, list[dict]]) -> str:
    run = RunDirectory(folder)
    run.start({"data": {"system_prompt": "Box <it>."}})
    for name, of_file in rows.items():
        prefix, _, step = name.rpartition("step_")
        run.write_generations(int(step), of_file, prefix=prefix)
    assert cli.main(["show", str(folder)]) == 0
    return (folder / "generations.html").read_text(encoding="utf-8")


def test_a_page_has_everything_of_a_response(tmp_path: Path):
    right = row(reward_parts={"math": 1.0, "short": None}, reward=0.75)
    found = Elements(page_of(tmp_path, {"step_1": [right], "val_step_0": [row(truncated=True)]}))
    assert found.blocks == [
        "Box <it>.",
        *["\n<|user|>1+1", "\n\\boxed{2}"] * 2,
    ]
    first, second = found.attributes
    assert (first["data-reward"], first["data-advantage"], first["data-length"]) == ("0.75", "-0.5", "7")
    assert (first["data-file"], first["data-step"], first["data-cut"]) == ("step_000001", "1", "0")
    assert (second["data-file"], second["data-cut"]) == ("val_step_000000", "1")
    text = (tmp_path / "generations.html").read_text()
    assert "math 1, short none" in text
    assert "truth <bdi>2</bdi>" in text


def test_hostile_texts_stay_texts(tmp_path: Path):
    hostile = row(prompt=HOSTILE, response=HOSTILE, ground_truth=HOSTILE, reward_parts={HOSTILE: 1.0})
    page = page_of(tmp_path, {"step_1": [hostile]})
    found = Elements(page)
    assert found.tags.count("script") == 1
    assert "img" not in found.tags
    assert not any(sign in page for sign in "\x00\x1b\u202e")
    assert found.blocks[-1].startswith("\n</pre></script><script>alert(1)</script>")
    for sign in ("⟨U+0000⟩", "⟨U+001B⟩", "⟨U+202E⟩", "⟨U+D800⟩"):
        assert sign in found.blocks[-1]
    assert "default-src 'none'" in page
    assert "http" not in page.replace('http-equiv="Content', "")


def test_long_responses_and_long_runs_are_cut_and_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(generations_page, "MOST_RESPONSES", 6)
    monkeypatch.setattr(generations_page, "MOST_FILES", 4)
    rows = {f"step_{step}": [row(response="a" * 1_000_000)] * 5 for step in (1, 2, 3)}
    page = page_of(tmp_path, rows)
    assert len(page) < 400_000
    assert "980000 letters left out; the file has them" in page
    assert "step_000001.jsonl: the first 3 of 5 responses." in page
    assert "1 files between the first and the newest ones are not on this page." in page
    assert "step_000002.jsonl" not in page


def test_a_page_has_a_largest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(generations_page, "MOST_LETTERS_OF_ALL", 2000)
    page = page_of(tmp_path, {"step_1": [row(response="b" * 500)] * 9})
    assert page.count("<article") == 2
    assert "the first 2 of 9 responses." in page


def test_an_evaluation_and_a_file_have_a_page_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "generations.jsonl"
    file.write_text(json.dumps({"problem": "old", "response": "x", "reward": None}) + '\n{"broken')
    assert cli.main(["show", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "generations.html")
    assert cli.main(["show", str(file), "--output", str(tmp_path / "new" / "page.html")]) == 0
    page = (tmp_path / "new" / "page.html").read_text()
    assert "reward <b>none</b>" in page
    assert "all 1 responses" in page


@pytest.mark.parametrize("what", ["nothing", "empty", "no_responses", "malformed"])
def test_where_there_is_nothing_to_show_the_user_is_told(tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "run"
    if what != "nothing":
        path.mkdir()
    if what == "no_responses":
        RunDirectory(path).start({})
    if what == "malformed":
        (path / "generations.jsonl").write_text("[1, 2\n")
    assert cli.main(["show", str(path)]) == 2
    expected = {
        "nothing": "there is no",
        "empty": "has neither generations/ nor",
        "no_responses": "trainer.generations_every",
        "malformed": "line 1 is not a JSON object",
    }
    assert expected[what] in capsys.readouterr().err
