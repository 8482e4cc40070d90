from __future__ import annotations

import json
import pickle
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hepdask import messages as module
from hepdask.messages import Message, Messages, MessageSum


def message(text: str = "low pt", count: int = 1, **more: Any) -> Message:
    return Message("warning", "UserWarning", text, "analysis/muons.py:1", count, **more)


# equal messages


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("event 1 of 20", "event 300 of 20"),
        ("at 0x7f0a", "at 0x10bc"),
        ("pt = -1.5e-3", "pt = 2"),
        ("1,000 events", "12 events"),
    ],
)
def test_texts_that_differ_in_numbers_are_one(left: str, right: str) -> None:
    (one,) = Messages([message(left), message(right, 2, worker="w2")])
    assert one == message(left, 3)


@pytest.mark.parametrize(
    "other",
    [
        {"text": "high pt"},
        {"level": "error"},
        {"category": "RuntimeWarning"},
        {"place": "analysis/muons.py:2"},
    ],
)
def test_messages_that_differ_are_two(other: dict[str, Any]) -> None:
    assert len(Messages([message(), replace(message(), **other)])) == 2


def test_where_it_came_from_makes_no_difference() -> None:
    first = message(dataset="dy", entry_start=0, entry_stop=1, worker="w1")
    second = message(dataset="tt", entry_start=1, entry_stop=2, worker="w2")
    assert tuple(Messages([first]) + Messages([second])) == (replace(first, count=2),)


def test_merging_changes_neither() -> None:
    left, right = Messages([message("a"), message("b")]), Messages([message("b"), message("c")])
    merged = left + right
    assert [(one.text, one.count) for one in merged] == [("a", 1), ("b", 2), ("c", 1)]
    assert [(one.text, one.count) for one in left] == [("a", 1), ("b", 1)]
    assert [(one.text, one.count) for one in right] == [("b", 1), ("c", 1)]


def test_only_messages_can_be_added() -> None:
    with pytest.raises(TypeError, match="unsupported operand"):
        Messages() + (message(),)  # type: ignore[operator]  # noqa: RUF005  # that's the point


MANY = st.lists(
    st.builds(
        message, st.sampled_from("abcdefgh"), st.integers(1, 5), worker=st.sampled_from("vw")
    ),
    max_size=8,
).map(Messages)


@given(MANY, MANY, MANY)
def test_merging_is_associative(a: Messages, b: Messages, c: Messages) -> None:
    assert (a + b) + c == a + (b + c)
    assert (a + Messages()) == (Messages() + a) == a
    assert Messages([*a, *b, *c]) == a + b + c


@given(st.lists(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(1, 5)), max_size=8), min_size=3, max_size=3))  # fmt: skip
def test_what_is_dropped_is_counted(given_lists: list[list[tuple[str, int]]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_MESSAGES", 3)
        a, b, c = (Messages(message(*one) for one in some) for some in given_lists)
        left, right = (a + b) + c, a + (b + c)
    total = sum(count for some in given_lists for _, count in some)
    first = list(dict.fromkeys(text for some in given_lists for text, _ in some))[:3]
    for merged in (left, right):
        assert merged.num_issued == total
        assert [one.text for one in merged] == first


def test_a_sum_in_place_is_the_sum() -> None:
    total = MessageSum()
    assert total.total() == Messages()
    for one in (message("a"), message("b", 2), message("a", 3)):
        total.add(one)
    before = total.total()
    assert before == Messages([message("a", 4), message("b", 2)])
    total.add(message("b"))
    assert [one.count for one in before] == [4, 2]
    assert [one.count for one in total.total()] == [4, 3]


def test_secrets_are_masked() -> None:
    (one,) = Messages.of("warning", "x", "token=hunter2 is old")
    assert one.text == "token=*** is old"


def test_a_secret_at_the_cut_is_masked() -> None:
    """What tells that it is one, the @, is behind the cut."""
    text = "x" * (module.MAX_TEXT_LENGTH - 30) + " me:" + "hunter2" * 20 + "@host"
    (one,) = Messages.of("warning", "x", text)
    assert "hunter" not in one.text


# what is shown and sent


def example() -> Messages:
    return Messages(
        [
            message("low <pt>\nof 3 muons", 1_234, dataset="dy", file_path="a.root", entry_start=0, entry_stop=5, worker="w1"),
            Message("error", "tests", "no [jets]", "a/b.py:7"),
        ],
        5,
    )  # fmt: skip


def test_it_is_a_sequence() -> None:
    found = example()
    assert len(found) == 2
    assert found[0].text.startswith("low")
    assert found[-1] is tuple(found)[1]
    assert found[1:] == Messages([found[1]])
    assert found[1] in found
    with pytest.raises(IndexError, match="out of range"):
        found[2]
    assert found == example()
    assert found != Messages(example())
    assert hash(found) == hash(example())
    assert found != list(found)


def test_pickling_keeps_all_and_no_more() -> None:
    found = example()
    packed = pickle.dumps(found)
    again = pickle.loads(packed)
    assert again == found
    assert again + found == found + found
    assert len(pickle.dumps(Messages())) < 100
    text = "x" * 1_000
    assert len(pickle.dumps(Messages([message(text)]))) < 1_500


def test_text_and_html() -> None:
    text = repr(example())
    assert text.startswith("<2 messages>\n")
    for part in ("Messages: 2; 5 more of other kinds", "1,234", "UserWarning: low <pt>", "entries 0 to 5", "on w1", "a/b.py:7"):  # fmt: skip
        assert part in text
    assert "of 3 muons" not in text
    html = example()._repr_html_()
    assert "low &lt;pt&gt;" in html
    assert html.count("color:#b00020") == 1
    assert html.index("color:#b00020") > html.index("low &lt;pt&gt;")


def test_text_of_none() -> None:
    assert repr(Messages()) == "<no messages>"
    assert Messages()._repr_html_() == "<p>no messages</p>"
    assert not Messages()


def test_a_table_has_the_first_only() -> None:
    table = Messages([message(letter) for letter in "abc"]).to_table(max_rows=2)
    assert table.title == "Messages: 3, the first 2"
    assert len(table.rows) == 2


def test_plain_values() -> None:
    plain = example().to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["num_dropped"] == 5
    assert plain["messages"][1] == {
        "level": "error",
        "category": "tests",
        "text": "no [jets]",
        "place": "a/b.py:7",
        "count": 1,
        "dataset": None,
        "file_path": None,
        "entry_start": None,
        "entry_stop": None,
        "worker": "",
    }


def test_a_single_message() -> None:
    (one,) = Messages.of("warning", "hepdask.StoreError", "a result is not kept")
    assert one == Message("warning", "hepdask.StoreError", "a result is not kept", "")
    assert "a result is not kept" in repr(Messages([one]))
