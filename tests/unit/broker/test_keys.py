import inspect
from pathlib import Path

from broker import keys

DOCUMENT = Path(__file__).parents[3] / "docs" / "redis-keys.md"


def test_the_page_of_keys_is_what_the_code_says():
    assert DOCUMENT.read_text() == keys.markdown()


def test_every_key_starts_with_the_prefix_and_is_described_once():
    patterns = [description.pattern for description in keys.DESCRIPTIONS]
    assert all(pattern.startswith((f"{keys.PREFIX}:", f"{keys.INDEX_PREFIX}:")) for pattern in patterns)
    assert len(set(patterns)) == len(patterns)


def test_every_public_function_is_a_described_key():
    functions = inspect.getmembers(keys, inspect.isfunction)
    ours = [f for name, f in functions if f.__module__ == keys.__name__ and not name.startswith("_")]
    made = {f(*(f"{{{name}}}" for name in inspect.signature(f).parameters)) for f in ours if f is not keys.markdown}
    assert made == {description.pattern for description in keys.DESCRIPTIONS}


def test_keys_of_two_requests_differ():
    assert keys.request("a") != keys.request("b") != keys.events("b")
