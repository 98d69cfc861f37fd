"""GBNF as it is read: what it accepts is compared with Python's own regular expressions, through llguidance."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from schemas.gbnf import HEADER, MAX_DEPTH, MAX_REPETITIONS, GrammarError, as_lark

BYTES = LLTokenizer("byte")


def accepts(grammar: str, text: str) -> bool:
    matcher = LLMatcher(BYTES, as_lark(grammar), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    raw = list(text.encode())
    return matcher.try_consume_tokens(raw) == len(raw) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        ('root ::= word "x"\nword ::= [a-z]+', "abx"),
        ('root ::= "yes" "t" | "yesterday"', "yest"),
        ('root ::= "\\u0041\\x0a\\U0001F600\\t\\"\\\\"', 'A\n😀\t"\\'),
        ('root ::= "é" [à-ü] [^a] .', "éä\n\n"),
        ("root ::= [\\]\\[a-]{4}", "][a-"),
        ('root ::= num-x num_x # one of each\nnum-x ::= "a"\nnum_x ::= "b"', "ab"),
        ('start ::= "a"\nroot ::= start', "a"),
        ('root ::= ("a" |\n  "b")\n# the end', "b"),
        ('root ::= "x" |\n "y"', "y"),
        ('root ::= "a"{0} "b"{2} "c"{1,} "d"{0,2}', "bbccd"),
        ('root ::= root "+" root | [0-9]', "1+2+3"),
        ("root ::= ", ""),
        ("root ::= " + "(" * MAX_DEPTH + '"a"' + ")" * MAX_DEPTH, "a"),
    ],
)
def test_a_grammar_accepts_what_it_says(grammar, text):
    assert accepts(grammar, text)
    assert not accepts(grammar, text + "!")


@pytest.mark.parametrize(
    ("grammar", "why"),
    [
        ("", "no rule `root`"),
        ('x ::= "a"', "no rule `root`"),
        ("root ::= other", "there is no rule `other`"),
        ("root := (", "`::=` is expected"),
        ('root ::= "a', "the literal has no end"),
        ("root ::= [a", "the character class has no end"),
        ("root ::= []", "matches nothing"),
        ("root ::= [z-a]", "ends before it begins"),
        ('root ::= ("a"', "is missing for this group"),
        ('root ::= "a")', "'\\)' is not expected"),
        ('root ::= "a"{2', "a repetition is"),
        ('root ::= "a"{3,2}', "above its second"),
        (f'root ::= "a"{{{MAX_REPETITIONS + 1}}}', f"at most {MAX_REPETITIONS}"),
        ('root ::= "a"{' + "9" * 5000 + "}", f"at most {MAX_REPETITIONS}"),
        ('root ::= "\\q"', "is no escape"),
        ('root ::= "\\x4"', "takes 2 hexadecimal digits"),
        ('root ::= "\\uD800"', "is no character"),
        ('root ::= "\\U00110000"', "is no character"),
        ('root ::= "a"\nroot ::= "b"', "is there twice .line 2, column 1"),
        ("root ::= <think>", "tokens are not supported"),
        ("root ::= " + "(" * 32_700 + '"a"' + ")" * 32_700, f"more than {MAX_DEPTH} deep"),
        ('start: "a"', "`::=` is expected"),
    ],
)
def test_what_is_no_grammar_is_refused_with_the_reason(grammar, why):
    with pytest.raises(GrammarError, match=why):
        as_lark(grammar)


CLASSES = st.sampled_from(["[ab]", "[^a]", "[a-c]", "[^bc]", "[\\n]"])
LEAVES = st.one_of(
    CLASSES.map(lambda one: (one, one)),
    st.just((".", "[\\s\\S]")),
    st.text("abc", max_size=3).map(lambda text: (f'"{text}"', f"(?:{text})")),
)


def combined(parts):
    several = st.lists(parts, min_size=1, max_size=3)
    return st.one_of(
        several.map(lambda ps: (f"({' '.join(p[0] for p in ps)})", f"(?:{''.join(p[1] for p in ps)})")),
        several.map(lambda ps: (f"({' | '.join(p[0] for p in ps)})", f"(?:{'|'.join(p[1] for p in ps)})")),
        st.tuples(parts, st.sampled_from(["*", "+", "?", "{2}", "{1,}", "{0,2}", "{0}"])).map(
            lambda p: (f"({p[0][0]}){p[1]}", f"(?:{p[0][1]}){p[1]}")
        ),
    )


@given(
    main=st.recursive(LEAVES, combined, max_leaves=6),
    rule=st.recursive(LEAVES, combined, max_leaves=4),
    texts=st.lists(st.text("abcé\n", max_size=5), max_size=8),
)
def test_a_grammar_without_recursion_accepts_what_the_same_regular_expression_does(main, rule, texts):
    grammar = f"root ::= {main[0]} rule | rule\nrule ::= {rule[0]}"
    expression = re.compile(f"(?:{main[1]}{rule[1]}|{rule[1]})")
    for text in texts:
        assert accepts(grammar, text) == bool(expression.fullmatch(text)), (grammar, text)


@given(st.text('root:=ab"[]()|*+?{}0-9\\x\n ', max_size=60))
def test_any_text_is_either_read_or_refused(text):
    try:
        lark = as_lark("root ::= " + text)
    except GrammarError:
        return
    assert lark.startswith(f"{HEADER}\nstart: ")
