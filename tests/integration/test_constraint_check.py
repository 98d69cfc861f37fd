"""Grammars that would end an engine or hold it up, tried out where they cannot: in a process of their own."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import psutil
import pytest

from schemas.requests import Sampling
from tests.polling import until
from workers.runtime.constraint_check import MAX_BYTES, ConstraintCheck, GrammarChecker, UnfitGrammar
from workers.runtime.constraints import Vocabulary, lark_of
from workers.runtime.failures import BeyondModel

#: All bytes, 17,576 words of six letters, and an end: as many and as long as a small model's.
WORDS = ["".join(letters).encode() * 2 for letters in product("abcdefghijklmnopqrstuvwxyz", repeat=3)]
TOKENS = [*(bytes([byte]) for byte in range(256)), *WORDS, b"<end>"]
VOCABULARY = Vocabulary(tokens=TOKENS, special=[len(TOKENS) - 1], ends=[len(TOKENS) - 1])
#: Seconds of one refusal: the second of processor time that the child has, on a machine that does other things too.
REFUSED_WITHIN_S = 5.0
GOOD = [
    {"json_schema": {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 10}}}},
    {"json_schema": {"type": "object", "properties": {"child": {"$ref": "#"}}}},
    {"json_schema": {"type": "string", "pattern": "^[a-z]{3}$"}},
    {"json_schema": {"enum": [f"value {place}" for place in range(2_000)]}},
    {"grammar": 'root ::= "yes" | "no"'},
    {"grammar": 'root ::= [^"]* "x"'},
    {"grammar": 'root ::= e\ne ::= e "+" e | [0-9]+'},
    # Long answers, of which each token is cheap.
    {"grammar": 'root ::= a{2000}\na ::= b{2000}\nb ::= c{2000}\nc ::= "x"{2000}'},
    {"grammar": f'root ::= "{"a" * 65_000}"'},
]
#: Too deep for a compiler's stack, too large for memory or for its limits, too slow for each token.
BAD = {
    "deep": {"grammar": "root ::= r0\n" + "".join(f"r{n} ::= r{n + 1}\n" for n in range(3_500)) + 'r3500 ::= "x"'},
    "ambiguous": {"grammar": "root ::= a a\na ::= a a | [a-z] |"},
    "endless": {"grammar": "root ::= root"},
    "items": {"json_schema": {"type": "array", "maxItems": 10**9, "items": {}}},
    "patterns": {"json_schema": {"allOf": [{"pattern": f"^.*{'x' * n}.*$"} for n in range(1, 40)], "type": "string"}},
    "no pattern": {"json_schema": {"type": "string", "pattern": "("}},
    "no type": {"json_schema": {"type": "no-such"}},
    "elsewhere": {"json_schema": {"$ref": "http://127.0.0.1:1/schema"}},
    "itself": {"json_schema": {"$ref": "#"}},
    "never": {"json_schema": {"type": "integer", "minimum": 10, "maximum": 1}},
    "unknown keyword": {"json_schema": {"type": "array", "uniqueItems": True}},
}


OWNER = "owner:alice"


def lark(options):
    text = lark_of(Sampling(**options))
    assert text is not None
    return text


@pytest.fixture(scope="module")
def check():
    checking = ConstraintCheck(VOCABULARY)
    checking.check(lark(GOOD[0]), OWNER)
    yield checking
    checking.close()


def child_of(check):
    return psutil.Process(check._child._process.pid)


@pytest.mark.parametrize("options", GOOD)
def test_what_people_write_passes(check, options):
    check.check(lark(options), OWNER)


@pytest.mark.parametrize("name", list(BAD))
def test_what_would_hurt_an_engine_is_refused_soon_and_nothing_else_is_hurt(check, name):
    grammar = lark(BAD[name])
    began = time.monotonic()
    with pytest.raises(UnfitGrammar) as first:
        check.check(grammar, OWNER)
    assert time.monotonic() - began < REFUSED_WITHIN_S
    began = time.monotonic()
    with pytest.raises(UnfitGrammar) as again:
        check.check(grammar, OWNER)
    assert time.monotonic() - began < 0.1, "a verdict is remembered"
    assert str(first.value) == str(again.value) != ""
    check.check(lark({"grammar": f'root ::= "after {name}"'}), OWNER)


def test_a_verdict_is_remembered_for_its_owner_alone_so_that_time_tells_of_nobody_elses_grammars(check):
    grammar = lark(BAD["deep"]) + "\n"  # another one than the test above had

    def seconds(namespace):
        began = time.monotonic()
        with pytest.raises(UnfitGrammar):
            check.check(grammar, namespace)
        return time.monotonic() - began

    first, again, stranger = (seconds(namespace) for namespace in (OWNER, OWNER, "owner:bob"))
    assert again < 0.1 * first
    assert stranger > 0.2 * first


def test_the_child_never_has_more_memory_than_it_may(check):
    for options in GOOD:
        check.check(lark(options), OWNER)
    assert child_of(check).memory_info().rss < MAX_BYTES // 4


def test_a_child_that_somebody_killed_is_replaced_and_no_grammar_is_blamed(check):
    child = child_of(check)
    os.kill(child.pid, signal.SIGKILL)
    until(lambda: child.status() == psutil.STATUS_ZOMBIE, "the child is dead", within_s=10)
    check.check(lark({"grammar": 'root ::= "alive"'}), OWNER)
    assert child_of(check).pid != child.pid


def test_many_at_once_are_answered_each_with_its_own(check):
    def verdict(number):
        good = number % 2
        try:
            check.check(lark({"grammar": f'root ::= "{number}"' if good else f'root ::= root "{number}"'}), OWNER)
        except UnfitGrammar:
            return not good
        return bool(good)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(verdict, range(40)))


def test_a_check_that_was_closed_has_no_child_and_makes_none():
    checking = ConstraintCheck(VOCABULARY)
    checking.check(lark(GOOD[0]), OWNER)
    child = child_of(checking)
    checking.close()
    checking.close()
    assert not child.is_running()
    with pytest.raises(UnfitGrammar):
        checking.check(lark({"grammar": 'root ::= "late"'}), OWNER)


def test_a_models_checker_makes_its_tokenizer_once_and_names_the_option_that_it_refuses():
    made = []

    def make_tokenizer():
        made.append(VOCABULARY.tokenizer())
        return made[-1]

    checker = GrammarChecker(make_tokenizer)
    try:
        assert checker.grammar_of(Sampling(), OWNER) is None
        assert made == []
        for options in GOOD[:2]:
            assert checker.grammar_of(Sampling(**options), OWNER) == (lark(options), made[0])
        for option in ("grammar", "json_schema"):
            bad = next(options for options in BAD.values() if option in options)
            with pytest.raises(BeyondModel, match=f"^{option}: "):
                checker.grammar_of(Sampling(**bad), OWNER)
        assert len(made) == 1
    finally:
        checker.close()
    checker.close()
