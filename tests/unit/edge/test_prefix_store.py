"""Prefixes on disk: what was saved comes back, and whatever is done to the folder, nothing else does."""

import json
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.edge.prefix_offload import OffloadedPrefixes
from workers.edge.prefix_store import MANIFEST, PrefixStore

PREFIXES = [(1, 2, 3, 4), (1, 2, 5, 6, 7), (8, 9)]
#: Of which the last is bob's too.
BOBS = [(8, 9)]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def store(folder: Path, build: str = "b1") -> PrefixStore:
    path = folder.parent / "model.gguf"
    path.write_bytes(b"a model")
    return PrefixStore(folder, path, build)


@contextmanager
def saved():
    """A folder with these prefixes in it."""
    with tempfile.TemporaryDirectory() as name:
        offloaded = OffloadedPrefixes(24)
        for whose, prefixes in (("bob", BOBS), ("alice", PREFIXES)):
            for tokens in prefixes:
                offloaded.offload(whose, tokens, lambda start, tokens=tokens: bytearray(tokens[start:]))
        folder = Path(name) / "prefixes"
        assert store(folder).save(offloaded) == len(PREFIXES) + len(BOBS)
        yield folder


def loaded(folder: Path, build: str = "b1", room: int = 24, whose: str = "alice") -> set[tuple[int, ...]]:
    """The prefixes that a new worker starts with for the namespace."""
    offloaded = OffloadedPrefixes(room)
    num = store(folder, build).load(offloaded)
    assert len(offloaded) == num
    for segment in offloaded:
        assert bytes(segment.state) == bytes(segment.tokens)
    return {offloaded.tokens_of(segment) for segment in offloaded if offloaded.namespace_of(segment) == whose}


def test_what_was_saved_is_there_again_for_whose_it_is():
    with saved() as folder:
        assert loaded(folder) == set(PREFIXES)
        assert loaded(folder, whose="bob") == set(BOBS)
        assert loaded(folder, whose="carol") == set()


def test_what_was_saved_before_there_were_namespaces_is_nobodys(caplog):
    with saved() as folder:
        manifest = json.loads((folder / MANIFEST).read_text())
        for entry in manifest["segments"]:
            del entry["namespace"]
        (folder / MANIFEST).write_text(json.dumps(manifest))
        assert loaded(folder) == loaded(folder, whose="bob") == set()
    assert "prefixes_ignored" in caplog.text


def test_what_is_saved_as_anothers_is_not_believed(caplog):
    with saved() as folder:
        manifest = json.loads((folder / MANIFEST).read_text())
        for entry in manifest["segments"]:
            entry["namespace"] = "mallory"
        (folder / MANIFEST).write_text(json.dumps(manifest))
        assert loaded(folder, whose="mallory") == set()
    assert "prefix_ignored" in caplog.text


def test_where_there_is_less_room_the_most_recently_used_come_back():
    with saved() as folder:
        assert loaded(folder, room=5) == {(8, 9)}
        assert loaded(folder, room=6) == {(8, 9), (1, 2, 3, 4)}


def test_another_build_starts_cold_and_says_so(caplog):
    with saved() as folder:
        assert loaded(folder, "b2") == set()
    assert "prefixes_ignored" in caplog.text


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "folder", "empty"])
def test_a_damaged_file_is_left_out_with_a_warning_and_the_others_are_loaded(caplog, damage):
    with saved() as folder:
        entries = json.loads((folder / MANIFEST).read_text())["segments"]
        victim = folder / next(entry["file"] for entry in entries if entry["namespace"] == "alice")
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
    # The second rests on the first.
    assert rest in ({(8, 9)}, {(8, 9), (1, 2, 3, 4)}, {(1, 2, 3, 4), (1, 2, 5, 6, 7)})
    assert "prefix_ignored" in caplog.text


@pytest.mark.parametrize("name", ["../model.gguf", "/etc/passwd", "manifest.json", "", "../prefixes/x.prefix"])
def test_a_manifest_leads_to_no_file_that_is_not_ours(caplog, name):
    with saved() as folder:
        manifest = json.loads((folder / MANIFEST).read_text())
        manifest["segments"][0]["file"] = name
        (folder / MANIFEST).write_text(json.dumps(manifest))
        assert loaded(folder) == set()
    assert "unreadable manifest" in caplog.text


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_whatever_the_manifest_holds_the_worker_starts(raw):
    with saved() as folder:
        (folder / MANIFEST).write_bytes(raw)
        assert loaded(folder) == set()


@given(field=st.sampled_from(["file", "digest", "namespace"]), value=JSON, place=st.integers(0, 3))
def test_whatever_an_entry_says_only_what_was_saved_is_loaded(field, value, place):
    with saved() as folder:
        manifest = json.loads((folder / MANIFEST).read_text())
        manifest["segments"][place][field] = value
        (folder / MANIFEST).write_text(json.dumps(manifest))
        assert loaded(folder) <= set(PREFIXES)


def test_a_manifest_that_cannot_be_read_is_a_cold_start():
    with saved() as folder:
        (folder / MANIFEST).unlink()
        (folder / MANIFEST).mkdir()
        assert loaded(folder) == set()
