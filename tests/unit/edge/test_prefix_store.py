"""Prefixes on disk, with a stand-in for llama.cpp's state files that believes what it reads, as llama.cpp does."""

import json
import tempfile
from array import array
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from naive_cells import NaiveCells

from workers.edge.prefix_cache import PrefixCache
from workers.edge.prefix_store import MANIFEST, STATE_SUFFIX, PrefixStore

PREFIXES = [(1, 2, 3, 4), (1, 2, 5, 6, 7), (8, 9)]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


class States:
    """Cells that are written to files as they are. What it is told to load it loads, or fails as a whole."""

    def __init__(self, folder: Path, build: str = "b1") -> None:
        self.cells, self.build, self.path = NaiveCells(), build, folder / "model.gguf"
        self.path.write_bytes(b"a model")

    def save(self, _sequence, tokens, path):
        path.write_bytes(array("q", tokens).tobytes())
        return True

    def load(self, sequence, path):
        tokens = tuple(array("q", path.read_bytes()))
        self.cells.write(sequence, 0, tokens)
        return tokens


def new_cache(states: States) -> PrefixCache:
    return PrefixCache(states.cells, num_cells=24, num_sequences=4, bytes_per_cell=10, enabled=True)


@contextmanager
def saved():
    """A folder with these prefixes in it."""
    with tempfile.TemporaryDirectory() as name:
        states = States(Path(name))
        cache = new_cache(states)
        for tokens in PREFIXES:
            sequence = cache.take_for_loading()
            states.cells.write(sequence, 0, tokens)
            cache.adopt(sequence, tokens)
        folder = Path(name) / "prefixes"
        assert PrefixStore(folder, states).save(cache) == len(PREFIXES)
        yield folder


def loaded(folder: Path, build: str = "b1") -> set[tuple[int, ...]]:
    """The prefixes that a new worker starts with."""
    states = States(folder.parent, build)
    cache = new_cache(states)
    num = PrefixStore(folder, states).load(cache)
    found = {cache.tokens_of(sequence) for sequence in cache.idle}
    assert len(found) == num
    for sequence in cache.idle:
        assert tuple(states.cells.tokens_of(sequence)) == cache.tokens_of(sequence)
    assert len(states.cells.cells) == 24 - cache.free_cells
    return found


def test_what_was_saved_is_there_again():
    with saved() as folder:
        assert loaded(folder) == set(PREFIXES)


def test_another_build_starts_cold_and_says_so(caplog):
    with saved() as folder:
        assert loaded(folder, "b2") == set()
    assert "prefixes_ignored" in caplog.text


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "folder", "empty"])
def test_a_damaged_file_is_left_out_with_a_warning_and_the_others_are_loaded(caplog, damage):
    with saved() as folder:
        victim = min(folder.glob(f"*{STATE_SUFFIX}"))
        raw = victim.read_bytes()
        victim.unlink()
        if damage == "cut":
            victim.write_bytes(raw[:-8])
        elif damage == "flipped":
            victim.write_bytes(bytes([raw[0] ^ 1]) + raw[1:])
        elif damage == "folder":
            victim.mkdir()
        elif damage == "empty":
            victim.write_bytes(b"")
        rest = loaded(folder)
    assert len(rest) == len(PREFIXES) - 1
    assert rest < set(PREFIXES)
    assert "prefix_ignored" in caplog.text


@pytest.mark.parametrize("name", ["../model.gguf", "/etc/passwd", "manifest.json", "", "../prefixes/x.prefix"])
def test_a_manifest_leads_to_no_file_that_is_not_ours(caplog, name):
    with saved() as folder:
        manifest = json.loads((folder / MANIFEST).read_text())
        manifest["prefixes"][0]["file"] = name
        (folder / MANIFEST).write_text(json.dumps(manifest))
        assert loaded(folder) == set()
    assert "unreadable manifest" in caplog.text


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_whatever_the_manifest_holds_the_worker_starts(raw):
    with saved() as folder:
        (folder / MANIFEST).write_bytes(raw)
        assert loaded(folder) == set()


@given(field=st.sampled_from(["file", "num_tokens", "digest"]), value=JSON, place=st.integers(0, 2))
def test_whatever_an_entry_says_only_what_was_saved_is_loaded(field, value, place):
    with saved() as folder:
        manifest = json.loads((folder / MANIFEST).read_text())
        manifest["prefixes"][place][field] = value
        (folder / MANIFEST).write_text(json.dumps(manifest))
        assert loaded(folder) <= set(PREFIXES)


def test_a_manifest_that_cannot_be_read_is_a_cold_start():
    with saved() as folder:
        (folder / MANIFEST).unlink()
        (folder / MANIFEST).mkdir()
        assert loaded(folder) == set()
