import fcntl
import io
import time

import pytest

from gateway.batches.files import DiskFiles, Locked, Quota, QuotaExceeded, Usage
from schemas.openai_files import StoredFile

DAY_S = 86_400
PLENTY = Quota(max_files=100, max_bytes=1 << 20)


def described(file_id="file-1", **changes):
    return StoredFile(**{"id": file_id, "bytes": 0, "created_at": 1, "filename": "x", "purpose": "batch"} | changes)


def content(files, file_id):
    with files.open(file_id) as opened:
        return opened.read()


def save(files, raw, description, quota=PLENTY):
    with files.receiving(io.BytesIO(raw)) as received:
        return files.keep(received, description, quota)


def everything(folder):
    """Every file in the folder but the locks that stay."""
    paths = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return sorted(path for path in paths if not path.startswith("locks/owner-"))


class Clock:
    """Tells the time that it is set to."""

    def __init__(self):
        self.now_s = 10.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "files"


@pytest.fixture
def files(folder, clock):
    return DiskFiles(folder, clock, clock)


def test_a_file_is_kept_found_listed_and_forgotten(files, folder, clock):
    assert save(files, b"abc", described()).bytes == 3
    save(files, b"", described("file-2", created_at=2))
    again = DiskFiles(folder, clock, clock)
    assert content(again, "file-1") == b"abc"
    assert [one.id for one in again.listed(None, None)] == ["file-2", "file-1"]
    assert again.listed("batch_output", None) == []
    assert again.delete("file-1")
    assert not again.delete("file-1")
    assert again.find("file-1") is None


def test_an_owners_files_are_listed_and_counted_apart(files):
    for owner, file_id in (("alice", "file-1"), ("alice", "file-2"), ("..", "file-3")):
        save(files, b"abc", described(file_id, owner=owner))
    assert files.usage("alice") == Usage(2, 6)
    assert files.usage("..") == Usage(1, 3)
    assert files.usage("nobody") == Usage(0, 0)
    assert {one.id for one in files.listed(None, "alice")} == {"file-1", "file-2"}
    files.delete("file-1")
    assert files.usage("alice") == Usage(1, 3)


def test_what_is_received_and_not_kept_is_gone(files, folder):
    with files.receiving(io.BytesIO(b"abc")) as received:
        assert received.path.stat().st_size == 3
        assert received.digest == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert everything(folder) == []


@pytest.mark.parametrize(
    ("quota", "names"), [(Quota(2, 1000), "owner_max_files is 2"), (Quota(9, 8), "owner_max_file_bytes is 8")]
)
def test_above_its_owners_quota_nothing_is_kept_and_the_limit_and_what_is_used_are_named(files, quota, names):
    for number in range(2):
        save(files, b"abc", described(f"file-{number}", owner="alice"), quota)
    with pytest.raises(QuotaExceeded, match=f"{names}; you keep 6 bytes in 2 files"):
        save(files, b"def", described("file-2", owner="alice"), quota)
    assert files.find("file-2") is None
    assert save(files, b"def", described("file-3", owner="bob"), quota).bytes == 3
    files.delete("file-0")
    assert save(files, b"def", described("file-2", owner="alice"), quota).bytes == 3


def test_an_id_that_is_taken_keeps_its_file(files):
    save(files, b"abc", described())
    assert save(files, b"other", described()).bytes == 3
    assert content(files, "file-1") == b"abc"


def test_a_file_whose_time_is_over_cannot_be_found_and_its_bytes_are_swept(files, folder, clock):
    save(files, b"abc", described(expires_at=100, owner="alice"))
    save(files, b"abc", described("file-2"))
    clock.now_s = 99.9
    assert files.sweep(1000, (), lambda _: False).expired == 0
    assert files.find("file-1") is not None
    clock.now_s = 100.0
    assert files.find("file-1") is None
    assert files.usage("alice") == Usage(0, 0)
    assert files.sweep(1000, {"file-1"}, lambda _: False).expired == 0, "a batch still reads it"
    assert content(files, "file-1") == b"abc"
    assert files.sweep(1000, (), lambda _: False).expired == 1
    clock.now_s = 1000.9
    assert files.sweep(1000, (), lambda _: False).expired == 0
    clock.now_s = 1001.0
    assert files.sweep(1000, (), lambda _: False).expired == 1, "it did not say when, but was made at 1 s"
    assert everything(folder) == []


def test_uploads_and_descriptions_that_broke_off_are_swept_and_those_under_way_are_not(files, folder, clock):
    left, also_left, written = (folder / "uploads" / name for name in ("left", "also-left", "written"))
    torn, undescribed = folder / "file-9.tmp", folder / "file-9.data"
    for path in (left, also_left, written, torn, undescribed):
        path.write_bytes(b"abc")
    save(files, b"abc", described(expires_at=2**40))
    clock.now_s = time.time()
    before = everything(folder)
    assert files.sweep(60, (), lambda _: False).orphans == 0
    assert everything(folder) == before, "whoever writes them may have just begun"
    with written.open("ab") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        clock.now_s = time.time() + 2 * DAY_S
        assert files.sweep(60, (), lambda _: False).orphans == 4
    assert everything(folder) == [
        "file-1.data",
        "file-1.json",
        next(name for name in before if name.startswith("owners/")),
        "uploads/written",
    ]


def test_parts_and_locks_of_batches_that_are_over_are_swept_and_others_are_not(files, folder):
    for name in ("batch_a-output", "batch_a-errors", "batch_b-output", "batch_c-output"):
        part = files.part(name)
        part.append(b"x\n")
        part.close()
    with files.lock("batch_c"):
        with files.lock("batch_a"), files.lock("batch_b"):
            pass
        assert files.sweep(60, (), lambda batch_id: batch_id != "batch_b").leftovers == 3
    assert everything(folder) == ["locks/batch_b", "locks/batch_c", "parts/batch_b-output", "parts/batch_c-output"]
    with files.lock("batch_a"):
        pass


def test_files_of_an_earlier_version_come_to_count_for_their_owner(files, folder):
    (folder / "file-1.data").write_bytes(b"abc")
    (folder / "file-1.json").write_text(described(bytes=3, owner="alice").model_dump_json())
    assert files.usage("alice") == Usage(0, 0)
    files.sweep(1000, (), lambda _: False)
    assert files.usage("alice") == Usage(1, 3)


@pytest.mark.parametrize("name", ["../secret", "a/b", "", ".", "x" * 200])
def test_no_name_leads_out_of_the_folder(files, name):
    assert files.find(name) is None
    assert not files.delete(name)
    with pytest.raises(FileNotFoundError):
        files.open(name)


def test_a_part_that_was_torn_off_goes_on_after_its_last_whole_line(files):
    part = files.part("p")
    part.append(b"one\n")
    part.append(b"tw")
    part.close()
    part = files.part("p")
    assert list(part.lines()) == [b"one\n"]
    part.append(b"two\n")
    assert list(part.lines()) == [b"one\n", b"two\n"]
    part.close()
    assert files.publish("p", described()).bytes == 8
    assert files.publish("p", described()).bytes == 8
    assert content(files, "file-1") == b"one\ntwo\n"


def test_an_empty_part_becomes_no_file(files):
    files.part("p").close()
    assert files.publish("p", described()) is None
    assert files.find("file-1") is None


def test_a_lock_is_held_once_and_freed(files, folder):
    with files.lock("b"), pytest.raises(Locked), DiskFiles(folder).lock("b"):
        pass
    with files.lock("b"):
        pass
