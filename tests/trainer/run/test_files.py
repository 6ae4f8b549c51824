"""JSON lines: strict JSON whatever the numbers are, and texts that survive."""

import json
import math

import numpy as np

from trainer.run.files import json_line, read_jsonl, write_jsonl


def test_lines_are_strict_json_whatever_the_numbers():
    values = {
        "a": math.nan,
        "b": [math.inf, 1],
        "c": np.float32(0.5),
        "d": np.int64(3),
        "e": True,
        "f": {"g": -math.inf},
    }

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    parsed = json.loads(json_line(values), parse_constant=refuse)
    assert parsed == {"a": None, "b": [None, 1], "c": 0.5, "d": 3, "e": True, "f": {"g": None}}


def test_line_separators_and_lone_surrogates_in_text_survive(tmp_path):
    rows = [{"step": 1, "response": "a\u2028b\x85c\nd"}, {"step": 2, "response": "\ud800"}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert read_jsonl(tmp_path / "rows.jsonl") == rows
