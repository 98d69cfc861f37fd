"""What a draft was worth: checkers for expected answers, similarity rules where nothing is expected, and judges.

The first of these that applies decides: an expected answer with a checker; the cloud's answer and a similarity rule;
a judge, for texts that differ. A user's own checkers and judges are entry points (groups `firstdraft.checkers` and
`firstdraft.judges`).
"""

import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

CHECKERS_GROUP, JUDGES_GROUP = "firstdraft.checkers", "firstdraft.judges"

#: From a text and what is expected to a score in [0, 1].
Checker = Callable[[str, Any], float]
#: From a prompt, a draft and the cloud's answer to the probability that they agree.
Judge = Callable[[str, str, str], float]

#: A sign after a word, a digit or a bracket is a dash or an operator. Commas separate groups of three digits.
_NUMBER = re.compile(
    r"(?:(?<![\w.,)\]])[-+\u2212])?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\w.])\.\d+)(?:[eE][-+]?\d+)?"
)
_FENCE = re.compile(r"```[a-zA-Z0-9]*\n(.*?)```", re.DOTALL)
_END = " .,;:!?。"


class UnknownRule(ValueError):
    """A checker, judge or similarity rule that is not installed, or a rule whose number cannot be."""


class CheckFailed(RuntimeError):
    """A user's checker or judge raised an error, or returned something that is no number in [0, 1]."""


@dataclass(frozen=True)
class Labelled:
    """What a draft was worth."""

    #: In [0, 1].
    worth: float
    #: Whether the draft is worse than the cloud's answer.
    worse: bool
    #: expected, verified or judged.
    source: str


def normalise(text: str) -> str:
    """The text without what equal answers may differ in: compatibility forms, case, white space, final punctuation."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(_END)


def words(text: str) -> list[str]:
    """Runs of letters and digits, without case."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return "".join(character if character.isalnum() else " " for character in plain).split()


def exact(text: str, expected: Any) -> float:
    """Whether the normalised texts are equal."""
    return float(normalise(text) == normalise(str(expected)))


def contains(text: str, expected: Any) -> float:
    """Whether the text contains what is expected as whole words."""
    wanted, given = words(str(expected)), words(text)
    if not wanted:
        return float(str(expected).strip() in text)
    return float(any(given[at : at + len(wanted)] == wanted for at in range(len(given))))


def number(text: str, expected: Any) -> float:
    """Whether the last number in the text equals the expected one; commas may separate thousands."""
    given, wanted = last_number(text), last_number(str(expected))
    return float(given is not None and given == wanted)


def regex(text: str, expected: Any) -> float:
    """Whether the regular expression matches anywhere in the text."""
    return float(re.search(str(expected), text) is not None)


def json_equal(text: str, expected: Any) -> float:
    """Whether the text, or its first code block, is the expected JSON document."""
    block = _FENCE.search(text)
    wanted = json.loads(expected) if isinstance(expected, str) else expected
    try:
        return float(_same_document(json.loads(block[1] if block else text), wanted))
    except (ValueError, RecursionError):  # no JSON, or nested more deeply than Python can follow
        return 0.0


def _same_document(one: Any, other: Any) -> bool:
    """Equality of JSON, where true is not 1, as it is in Python."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same_document(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same_document, one, other))
    return bool(one == other)


#: Those that need no package.
BUILT_IN: Mapping[str, Checker] = {
    "exact": exact,
    "contains": contains,
    "number": number,
    "regex": regex,
    "json": json_equal,
}


def last_number(text: str) -> Decimal | None:
    """The last number in the text."""
    found = _NUMBER.findall(text)
    try:
        return Decimal(found[-1].replace(",", "").replace("\u2212", "-")) if found else None
    except InvalidOperation:
        return None


@cache
def installed(group: str) -> Mapping[str, EntryPoint]:
    """The entry points of a group by name; imports none of them."""
    return {entry.name: entry for entry in entry_points(group=group)}


def checker_for(expected: Any, name: str | None) -> str:
    """The checker's name; by default `number` for numbers, `json` for objects and lists, else `contains`.

    Raises `UnknownRule`.
    """
    if name is None:
        if isinstance(expected, int | float) and not isinstance(expected, bool):
            return "number"
        return "json" if isinstance(expected, dict | list) else "contains"
    if name not in BUILT_IN and name not in installed(CHECKERS_GROUP):
        names = ", ".join(sorted({*BUILT_IN, *installed(CHECKERS_GROUP)}))
        raise UnknownRule(f"checker {name!r} is not installed; there are {names}")
    return name


def check(text: str, expected: Any, name: str | None = None) -> float:
    """The checker's score of a text. Raises `UnknownRule` and `CheckFailed`."""
    chosen = checker_for(expected, name)
    if chosen in BUILT_IN:
        try:
            return BUILT_IN[chosen](text, expected)
        except (ValueError, re.error) as error:
            raise CheckFailed(f"checker {chosen!r} cannot use what is expected, {expected!r}: {error}") from error
    return _users(installed(CHECKERS_GROUP)[chosen], text, expected)


def judge_for(name: str) -> EntryPoint:
    """A user's judge. Raises `UnknownRule`."""
    entry = installed(JUDGES_GROUP).get(name)
    if entry is None:
        there = ", ".join(sorted(installed(JUDGES_GROUP))) or "none"
        raise UnknownRule(f"judge {name!r} is not installed; there are {there}")
    return entry


def judged(name: str, prompt: str, draft: str, answer: str) -> float:
    """A user's judge: the probability that draft and answer agree. Raises `UnknownRule` and `CheckFailed`."""
    return _users(judge_for(name), prompt, draft, answer)


def _users(entry: EntryPoint, *arguments: Any) -> float:
    try:
        score = float(entry.load()(*arguments))
    except Exception as error:
        raise CheckFailed(f"{entry.name!r} ({entry.value}) failed: {error!r}") from error
    if not math.isfinite(score) or not 0 <= score <= 1:
        raise CheckFailed(f"{entry.name!r} ({entry.value}) returned {score}, which is not in [0, 1]")
    return score


def overlap(one: str, other: str) -> float:
    """F1 of the words of two texts, each counted as often as it comes; 1 where neither has any."""
    left, right = Counter(words(one)), Counter(words(other))
    total = left.total() + right.total()
    return 2 * (left & right).total() / total if total else 1.0


def check_similarity(rule: str) -> None:
    """Raise `UnknownRule` unless it is `equal`, `number`, `standing:SHARE` or `overlap:SHARE`."""
    name, _, share = rule.partition(":")
    try:
        known = rule in {"equal", "number"} or (name in {"standing", "overlap"} and 0 <= float(share) <= 1)
    except ValueError:
        known = False
    if not known:
        raise UnknownRule(f"similarity rule {rule!r} must be equal, number, standing:SHARE or overlap:SHARE")


def says_the_same(draft: str, answer: str, rule: str, standing: float | None) -> bool:
    """Whether the cloud's answer confirms the draft by a similarity rule. Raises `UnknownRule`."""
    check_similarity(rule)
    if normalise(draft) == normalise(answer):
        return True
    name, _, share = rule.partition(":")
    match name:
        case "number":
            return last_number(draft) is not None and last_number(draft) == last_number(answer)
        case "standing":
            return standing is not None and standing >= float(share)
        case "overlap":
            return overlap(draft, answer) >= float(share)
    return False


def label_expected(draft: str, answer: str, expected: Any, checker: str | None = None) -> Labelled:
    """The label by an expected answer: worse where the checker scores the draft below the cloud's answer."""
    ours, clouds = check(draft, expected, checker), check(answer, expected, checker)
    return Labelled(1.0 if clouds == 0 else min(1.0, ours / clouds), ours < clouds, "expected")


def label_verified(draft: str, answer: str, *, similarity: str = "equal", standing: float | None = None) -> Labelled:
    """The label by the cloud's answer. `standing`: the share of the draft's tokens that the cloud accepted."""
    same = says_the_same(draft, answer, similarity, standing)
    worth = standing if standing is not None else overlap(draft, answer)
    return Labelled(1.0 if same else worth, not same, "verified")


def label_judged(agree: float) -> Labelled:
    """The label by a judge's probability that draft and answer agree."""
    return Labelled(agree, agree < 0.5, "judged")
