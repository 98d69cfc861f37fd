"""Where batch files are kept: one small interface, and the disk behind it.

A file is written once and then only read. A batch that runs appends to parts, which become files when it ends; a lock
on the batch lives exactly as long as the process that holds it.
"""

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from schemas.openai_files import StoredFile

#: Bytes that are copied at a time.
CHUNK = 1 << 16
#: What an id or a part's name may look like: nothing that could leave its folder.
SAFE_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")


class Locked(Exception):
    """Another process, or another thread of this one, holds the lock."""


class Part(Protocol):
    """A file that is being written. One writer at a time, which must hold the batch's lock."""

    def lines(self) -> Iterator[bytes]:
        """What was written so far, by this process or an earlier one, without an end that was torn off."""

    def append(self, line: bytes) -> None:
        """Add a line; it is the operating system's when this returns, and survives the death of the process."""

    def close(self) -> None:
        """Write no more."""


class Files(Protocol):
    """Keeps files. May be used from any thread; all processes that share it see the same files."""

    def save(self, source: BinaryIO, description: StoredFile) -> StoredFile:
        """Keep a copy of the stream, never whole in memory; gives the description with its size."""

    def find(self, file_id: str) -> StoredFile | None:
        """The file's description, or None."""

    def listed(self, purpose: str | None) -> list[StoredFile]:
        """Descriptions of all files, the newest first."""

    def open(self, file_id: str) -> BinaryIO:
        """The content. Raises FileNotFoundError."""

    def delete(self, file_id: str) -> bool:
        """Forget the file; False where there is none."""

    def part(self, name: str) -> Part:
        """The part of this name, as far as it was written."""

    def publish(self, name: str, description: StoredFile) -> StoredFile | None:
        """Make a file of the part; None where it is empty. Repeating it after a crash changes nothing."""

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold the lock while the block runs. Raises `Locked` at once where it is taken."""


class DiskFiles:
    """Files in a folder: contents beside descriptions, parts and locks in folders of their own."""

    def __init__(self, folder: Path) -> None:
        """The folder is made if need be, for its user alone."""
        self._folder, self._parts, self._locks = folder, folder / "parts", folder / "locks"
        for one in (self._folder, self._parts, self._locks):
            one.mkdir(parents=True, exist_ok=True, mode=0o700)

    def save(self, source: BinaryIO, description: StoredFile) -> StoredFile:
        """See `Files`."""
        content = self._content(description.id)
        with content.open("xb") as target:
            shutil.copyfileobj(source, target, CHUNK)
            target.flush()
            os.fsync(target.fileno())
        return self._describe(description)

    def find(self, file_id: str) -> StoredFile | None:
        """See `Files`."""
        try:
            return StoredFile.model_validate_json(self._description(file_id).read_bytes())
        except FileNotFoundError:
            return None

    def listed(self, purpose: str | None) -> list[StoredFile]:
        """See `Files`."""
        found = [self.find(path.stem) for path in self._folder.glob("*.json")]
        kept = [one for one in found if one is not None and purpose in {None, one.purpose}]
        return sorted(kept, key=lambda one: (one.created_at, one.id), reverse=True)

    def open(self, file_id: str) -> BinaryIO:
        """See `Files`."""
        return self._content(file_id).open("rb")

    def delete(self, file_id: str) -> bool:
        """See `Files`."""
        try:
            self._description(file_id).unlink()
        except FileNotFoundError:
            return False
        self._content(file_id).unlink(missing_ok=True)
        return True

    def part(self, name: str) -> "DiskPart":
        """See `Files`."""
        return DiskPart(self._parts / _safe(name))

    def publish(self, name: str, description: StoredFile) -> StoredFile | None:
        """See `Files`."""
        part, content = self._parts / _safe(name), self._content(description.id)
        if part.exists() and part.stat().st_size > 0:
            part.rename(content)
        part.unlink(missing_ok=True)
        return self._describe(description) if content.exists() else None

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """See `Files`."""
        with (self._locks / _safe(name)).open("wb") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Locked(name) from error
            yield

    def _describe(self, description: StoredFile) -> StoredFile:
        """Write the description last, and whole or not at all: a file without one does not exist."""
        size = self._content(description.id).stat().st_size
        described = description.model_copy(update={"bytes": size})
        path = self._description(description.id)
        unfinished = path.with_suffix(".tmp")
        unfinished.write_text(described.model_dump_json(), encoding="utf-8")
        unfinished.replace(path)
        return described

    def _content(self, file_id: str) -> Path:
        return self._folder / f"{_safe(file_id)}.data"

    def _description(self, file_id: str) -> Path:
        return self._folder / f"{_safe(file_id)}.json"


class DiskPart:
    """See `Part`."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a+b", buffering=0)

    def lines(self) -> Iterator[bytes]:
        """See `Part`."""
        self._file.seek(0)
        whole = 0
        with os.fdopen(os.dup(self._file.fileno()), "rb") as reader:
            for line in reader:
                if line.endswith(b"\n"):
                    whole += len(line)
                    yield line
        self._file.truncate(whole)

    def append(self, line: bytes) -> None:
        """See `Part`."""
        self._file.write(line)

    def close(self) -> None:
        """See `Part`."""
        os.fsync(self._file.fileno())
        self._file.close()


def _safe(name: str) -> str:
    """The name. Raises FileNotFoundError for one that no file can have."""
    if not SAFE_NAME.fullmatch(name):
        raise FileNotFoundError(name)
    return name
