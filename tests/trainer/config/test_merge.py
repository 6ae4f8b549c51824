from dataclasses import dataclass, field

import pytest

from trainer.config.merge import merge, nearest_keys
from trainer.config.sources import Source


@dataclass(frozen=True)
class Inner:
    size: int = 1
    names: list[str] = field(default_factory=list)
    rate: float | None = None
    on: bool = False
    sets: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Root:
    path: str = "???"
    inner: Inner = field(default_factory=Inner)
    other: Inner = field(default_factory=Inner)


def draft_of(*trees: dict):
    return merge(Root, [Source({"path": "p"}, "base"), *(Source(tree, "test") for tree in trees)])


def messages(*trees: dict) -> list[str]:
    return [problem.message for problem in draft_of(*trees).problems]


def test_nested_and_dotted_keys_mean_the_same():
    nested, dotted = draft_of({"inner": {"size": 3, "rate": 2}}), draft_of({"inner.size": 3, "inner.rate": 2})
    assert nested.value == dotted.value == Root(path="p", inner=Inner(size=3, rate=2.0))
    assert nested.problems == []


def test_later_sources_win():
    draft = merge(Root, [Source({"path": "a"}, "first"), Source({"path": "b"}, "second")])
    assert draft.value.path == "b"
    assert draft.origins["path"] == "second"


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"inner": {"size": "big"}}, "inner.size='big' is not a whole number"),
        ({"inner": {"size": 1.5}}, "inner.size=1.5 is not a whole number"),
        ({"inner": {"size": None}}, "inner.size=None is not a whole number"),
        ({"inner": {"size": True}}, "inner.size=True is not a whole number"),
        ({"inner": {"on": "perhaps"}}, "inner.on='perhaps' is not true or false"),
        ({"inner": {"rate": "x"}}, "inner.rate='x' is not a number or null"),
        ({"inner": {"names": [{"a": 1}]}}, "inner.names=[{'a': 1}] is not a list of texts"),
        ({"path": ["a"]}, "path=['a'] is not a text"),
        ({"inner": 3}, "inner=3: inner is a section; set one of its keys: inner.names, inner.on"),
        ({"inner": {"size": {"x": 1}}}, "inner.size={'x': 1} is not a whole number"),
        ({"inner.sets.a": None}, "inner.sets.a=None is not a list of texts"),
        ({"inner": {"sets": {"a": {"b": 1}}}}, "inner.sets.a={'b': 1} is not a list of texts"),
        ({"inner.sets": ["a"]}, "inner.sets=['a'] is not a mapping"),
        ({"inner.size.x": 1}, "unknown key 'inner.size.x': inner.size holds a whole number, no keys"),
    ],
)
def test_wrong_types(tree: dict, message: str):
    (found,) = messages(tree)
    assert found.startswith(message)


def test_what_is_wrong_keeps_its_default():
    draft = draft_of({"inner": {"size": "big", "on": True}})
    assert draft.value.inner == Inner(size=1, on=True)
    assert draft.doubtful == {"inner.size"}


def test_one_value_for_a_list_is_a_list_of_one():
    assert draft_of({"inner.names": "a"}).value.inner.names == ["a"]


def test_entries_of_a_mapping_are_set_one_by_one_and_cleared_together():
    assert draft_of({"inner.sets.a": "x"}, {"inner": {"sets": {"b": ["y"]}}}).value.inner.sets == {
        "a": ["x"],
        "b": ["y"],
    }
    assert draft_of({"inner.sets.a": "x"}, {"inner.sets": {}}).value.inner.sets == {}


def test_an_empty_section_sets_nothing():
    assert messages({"inner": None}) == []


def test_unknown_keys_name_the_nearest():
    assert messages({"inner": {"sise": 1}}) == ["unknown key 'inner.sise'; did you mean inner.size?"]
    assert messages({"iner": {"size": 1}}) == ["unknown key 'iner'; did you mean inner?"]
    assert messages({"size": 1}) == ["unknown key 'size'; did you mean inner.size or other.size?"]
    assert messages({"zzzzzz": 1}) == ["unknown key 'zzzzzz'; sections: inner, other"]


def test_the_key_that_was_meant_is_doubtful_unless_it_was_also_written():
    assert "inner.size" in draft_of({"inner": {"sise": 1}}).doubtful
    assert "inner.size" not in draft_of({"inner": {"sise": 1, "size": 2}}).doubtful


def test_a_missing_value_is_a_mistake_and_filled_in():
    draft = merge(Root, [])
    assert [problem.keys for problem in draft.problems] == [("path",)]
    assert draft.value.path == ""


def test_interpolations_resolve_or_are_mistakes():
    assert draft_of({"inner": {"size": "${other.size}"}, "other": {"size": 5}}).value.inner.size == 5
    (message,) = messages({"inner": {"size": "${nowhere}"}})
    assert message.startswith("inner.size: Interpolation key 'nowhere' not found")
    for key in ("inner.sets.a", "inner.names"):
        (message,) = messages({key: ["${nowhere}"]})
        assert message.startswith(f"{key}: Interpolation key 'nowhere' not found")


def test_an_open_section_takes_other_keys():
    draft = merge(Root, [Source({"path": "p", "inner": {"size": 2, "knob": 0.5}}, "test")], open_section="inner")
    assert draft.extras == {"knob": 0.5}
    assert draft.value.inner.size == 2
    assert draft.problems == []


def test_a_closed_key_cannot_be_set():
    draft = merge(Root, [Source({"path": "p", "inner": {"names": ["a"]}}, "test")], closed="inner.names")
    assert [problem.keys for problem in draft.problems] == [("inner.names",)]


def test_nearest_keys_prefer_the_same_name_below_the_same_section():
    known = ["actor.megatron.tp", "rollout.tp", "actor.lr"]
    assert nearest_keys("actor.tp", known) == ["actor.megatron.tp"]
    assert nearest_keys("data.tp", known) == ["actor.megatron.tp", "rollout.tp"]
