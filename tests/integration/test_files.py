import io

import pytest

from gateway.files import DiskFiles, Locked
from schemas.openai_files import StoredFile


def described(file_id="file-1", **changes):
    return StoredFile(**{"id": file_id, "bytes": 0, "created_at": 1, "filename": "x", "purpose": "batch"} | changes)


def content(files, file_id):
    with files.open(file_id) as opened:
        return opened.read()


@pytest.fixture
def files(tmp_path):
    return DiskFiles(tmp_path / "files")


def test_a_file_is_kept_found_listed_and_forgotten(files, tmp_path):
    assert files.save(io.BytesIO(b"abc"), described()).bytes == 3
    files.save(io.BytesIO(b""), described("file-2", created_at=2))
    again = DiskFiles(tmp_path / "files")
    assert content(again, "file-1") == b"abc"
    assert [one.id for one in again.listed(None)] == ["file-2", "file-1"]
    assert again.listed("batch_output") == []
    assert again.delete("file-1")
    assert not again.delete("file-1")
    assert again.find("file-1") is None


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


def test_a_lock_is_held_once_and_freed(files, tmp_path):
    with files.lock("b"), pytest.raises(Locked), DiskFiles(tmp_path / "files").lock("b"):
        pass
    with files.lock("b"):
        pass
