"""What drafts are worth: checkers, similarity rules, judges."""

from decimal import Decimal
from importlib.metadata import EntryPoint

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quality import labels
from quality.labels import (
    CheckFailed,
    Labelled,
    UnknownRule,
    check,
    check_similarity,
    checker_for,
    judged,
    label_expected,
    label_judged,
    label_verified,
    last_number,
    normalise,
    overlap,
    says_the_same,
)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("  The\tCapital is\nCANBERRA. ", "the capital is canberra"),
        ("\uff21\uff22\uff23!", "abc"),
        ("STRASSE", "strasse"),
        ("Straße", "strasse"),
        ("Really?!", "really"),
        (".5", ".5"),
        ("!x", "!x"),
        ("", ""),
    ],
)
def test_equal_answers_are_normalised_to_the_same(text, plain):
    assert normalise(text) == plain


@given(st.text())
def test_no_end_is_left_to_strip(text):
    plain = normalise(text)
    assert not plain.endswith((".", " ", "!", "?"))
    assert plain == normalise(f"  {text} \n. ")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("it costs $1,234.50.", "1234.50"),
        ("first 3, then 4", "4"),
        ("minus \u22127", "-7"),
        ("(-5)", "-5"),
        ("pages 10-15", "15"),
        ("x-5", "5"),
        ("f(2)-3", "3"),
        ("[1,2,3]", "3"),
        ("1,2345", "2345"),
        ("it is .5", "0.5"),
        ("-.5", "-0.5"),
        ("release 1.2.3", "3"),
        ("6e3", "6000"),
        ("none", None),
        ("", None),
    ],
)
def test_the_last_number_is_found(text, found):
    assert last_number(text) == (None if found is None else Decimal(found))


@given(st.integers(-(10**15), 10**15), st.integers(0, 10**9))
def test_numbers_are_read_with_and_without_separators(number, other):
    assert last_number(f"{number}") == last_number(f"so {number:,}.") == number
    assert last_number(f"{other}-{other}") == other


@pytest.mark.parametrize(
    ("checker", "text", "expected", "score"),
    [
        ("exact", "Canberra.", "canberra", 1),
        ("exact", "It is Canberra.", "canberra", 0),
        ("exact", ".5", "5", 0),
        ("contains", "It is Canberra, of course", "canberra", 1),
        ("contains", "concatenate", "cat", 0),
        ("contains", "New York City", "new york", 1),
        ("contains", "a += 1", "+=", 1),
        ("number", "The sum is 1,200.0", 1200, 1),
        ("number", "1200 of 1300", 1200, 0),
        ("number", "many", 3, 0),
        ("regex", "def f(x):", r"def \w+\(", 1),
        ("regex", "f(x)", "^def", 0),
        ("json", 'So:\n```json\n{"b": [1.0], "a": 1}\n```', {"a": 1, "b": [1]}, 1),
        ("json", "[1, 2]", "[1,2]", 1),
        ("json", "[2, 1]", [1, 2], 0),
        ("json", "[1, 1]", [1], 0),
        ("json", '{"a": true}', {"a": 1}, 0),
        ("json", '{"a": true}', {"a": True}, 1),
        ("json", '{"a": 1}', {"b": 1}, 0),
        ("json", "{a: 1}", {"a": 1}, 0),
        ("json", "[" * 200_000, {"a": 1}, 0),
    ],
)
def test_checkers_score(checker, text, expected, score):
    assert check(text, expected, checker) == score


def test_the_checker_follows_from_what_is_expected():
    assert [checker_for(each, None) for each in ("x", 3, 2.5, {}, [], True)] == [
        "contains",
        "number",
        "number",
        "json",
        "json",
        "contains",
    ]
    with pytest.raises(UnknownRule, match="'oracle' is not installed; there are contains, exact"):
        check("x", "x", "oracle")


@pytest.mark.parametrize(("checker", "expected"), [("regex", "("), ("json", "{")])
def test_what_a_checker_cannot_use_is_an_error(checker, expected):
    with pytest.raises(CheckFailed, match=checker):
        check("x", expected, checker)


def half(*_):
    return 0.5


def failing(*_):
    raise ZeroDivisionError("by nothing")


def not_a_number(*_):
    return float("nan")


def too_much(*_):
    return 2


def nothing(*_):
    return None


@pytest.fixture
def users(monkeypatch):
    names = ("half", "failing", "not_a_number", "too_much", "nothing")
    monkeypatch.setattr(
        labels, "installed", lambda group: {name: EntryPoint(name, f"{__name__}:{name}", group) for name in names}
    )


@pytest.mark.usefixtures("users")
def test_users_bring_checkers_and_judges():
    assert check("x", "y", "half") == judged("half", "prompt", "draft", "answer") == 0.5
    for name, words in (
        ("failing", "by nothing"),
        ("not_a_number", "returned nan"),
        ("too_much", "returned 2"),
        ("nothing", "failed"),
    ):
        with pytest.raises(CheckFailed, match=words) as checking:
            check("x", "y", name)
        with pytest.raises(CheckFailed, match=words):
            judged(name, "prompt", "draft", "answer")
        assert repr(name) in str(checking.value)
    with pytest.raises(UnknownRule, match="judge 'oracle'"):
        judged("oracle", "prompt", "draft", "answer")


def test_overlap_is_f1_of_words():
    assert overlap("a b", "a b c d") == pytest.approx(2 * 2 / 6)
    assert overlap("a a", "a") == pytest.approx(2 / 3)
    assert (overlap("", ""), overlap("a", "")) == (1, 0)


@given(st.text(), st.text())
def test_overlap_is_symmetric_and_a_share(one, other):
    assert overlap(one, other) == overlap(other, one)
    assert 0 <= overlap(one, other) <= 1
    assert overlap(one, one) == 1


@pytest.mark.parametrize(
    ("rule", "draft", "answer", "standing", "same"),
    [
        ("equal", "Canberra", "canberra.", 0.0, True),
        ("equal", "Sydney", "Canberra", 1.0, False),
        ("number", "so 4", "it is 4.0", None, True),
        ("number", "so 4", "it is 5", None, False),
        ("number", "none", "nothing", None, False),
        ("standing:0.9", "a", "b", 0.9, True),
        ("standing:0.9", "a", "b", 0.89, False),
        ("standing:0.9", "a", "b", None, False),
        ("standing:0.9", "a", "A.", 0.1, True),
        ("overlap:0.8", "a b c d e", "a b c d f", None, True),
        ("overlap:0.8", "a b c d", "a b c e", None, False),
    ],
)
def test_similarity_rules(rule, draft, answer, standing, same):
    assert says_the_same(draft, answer, rule, standing) is same


@pytest.mark.parametrize("rule", ["", "same", "standing", "standing:x", "overlap:1.1", "overlap:nan", "equal:1"])
def test_unknown_rules_are_refused(rule):
    with pytest.raises(UnknownRule, match="similarity rule"):
        check_similarity(rule)


def test_an_expected_answer_decides():
    assert label_expected("Sydney", "Canberra", "Canberra") == Labelled(0.0, worse=True, source="expected")
    assert label_expected("Canberra", "Sydney", "Canberra") == Labelled(1.0, worse=False, source="expected")
    assert label_expected("Perth", "Sydney", "Canberra") == Labelled(1.0, worse=False, source="expected")


@pytest.mark.usefixtures("users")
def test_partial_scores_are_compared():
    assert label_expected("a", "b", "c", "half") == Labelled(1.0, worse=False, source="expected")


def test_the_clouds_answer_decides():
    assert label_verified("A.", "a", standing=0.2) == Labelled(1.0, worse=False, source="verified")
    assert label_verified("a", "b", standing=0.2) == Labelled(0.2, worse=True, source="verified")
    assert label_verified("a b", "a c") == Labelled(0.5, worse=True, source="verified")


def test_a_judge_decides():
    assert label_judged(0.5) == Labelled(0.5, worse=False, source="judged")
    assert label_judged(0.4) == Labelled(0.4, worse=True, source="judged")
