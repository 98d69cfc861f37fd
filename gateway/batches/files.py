"""Where batch files are kept: one small interface, and the disk behind it.

A file is written once and then only read, until it expires. A batch that runs appends to parts, which become files when
it ends; a lock on the batch lives exactly as long as the process that holds it.
"""

import fcntl
import hashlib
import logging
import os
import re
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, Protocol

from pydantic import ValidationError

from schemas.openai_files import StoredFile

log = logging.getLogger(__name__)

#: Bytes that are copied at a time.
CHUNK = 1 << 16
#: What an id or a part's name may look like: nothing that could leave its folder.
SAFE_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")
#: How the names of parts, and of locks that are batches', begin.
BATCH_PREFIX = "batch_"
#: Seconds after which an upload that no process has locked is one that broke off; before, it may just begin.
UNLOCKED_UPLOAD_S = 60
#: Seconds after which what belongs to no file is swept away: nothing takes that long between two steps.
LEAST_ORPHAN_S = 86_400


class Locked(Exception):
    """Another process, or another thread of this one, holds the lock."""


@dataclass(frozen=True)
class Usage:
    """What an owner keeps."""

    num_files: int
    num_bytes: int


@dataclass(frozen=True)
class Quota:
    """What an owner may keep."""

    max_files: int
    max_bytes: int


class QuotaExceeded(Exception):
    """The owner keeps too much for one more file. Nothing was kept of it."""

    def __init__(self, setting: str, limit: int, usage: Usage, num_bytes: int | None = None) -> None:
        kept = f"you keep {usage.num_bytes} bytes in {usage.num_files} files"
        more = "" if num_bytes is None else f", and this one has {num_bytes}"
        super().__init__(f"gateway.{setting} is {limit}; {kept}{more}. Delete some, or wait until they expire.")


@dataclass(frozen=True)
class Swept:
    """How much was removed that nobody needs any more."""

    expired: int = 0
    #: Uploads that broke off, contents without a description, and the like.
    orphans: int = 0
    #: Parts and locks of batches that are over.
    leftovers: int = 0


class Received(Protocol):
    """A file's content that has arrived and is not kept yet."""

    @property
    def num_bytes(self) -> int:
        """Its size."""

    @property
    def digest(self) -> str:
        """SHA-256 of it, in hexadecimal."""

    def keep(self, description: StoredFile, quota: Quota) -> StoredFile:
        """Make a file of it, and give its description with its size; the one that is there, where its id is taken.

        Raises `QuotaExceeded`.
        """


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

    @contextmanager
    def receiving(self, source: BinaryIO) -> Iterator[Received]:
        """A copy of the stream, never whole in memory; forgotten after the block unless it was kept."""

    def find(self, file_id: str) -> StoredFile | None:
        """The file's description; None where there is none, or it has expired."""

    def listed(self, purpose: str | None, owner: str | None) -> list[StoredFile]:
        """Descriptions of the owner's files, or of everybody's for None, the newest first."""

    def usage(self, owner: str) -> Usage:
        """What the owner keeps."""

    def open(self, file_id: str) -> BinaryIO:
        """The content, also of a file that has expired and is still there. Raises FileNotFoundError."""

    def delete(self, file_id: str) -> bool:
        """Forget the file; False where there is none."""

    def part(self, name: str) -> Part:
        """The part of this name, as far as it was written."""

    def publish(self, name: str, description: StoredFile) -> StoredFile | None:
        """Make a file of the part, whatever its owner keeps; None where it is empty.

        Repeating it after a crash changes nothing.
        """

    @contextmanager
    def lock(self, name: str, *, wait: bool = False) -> Iterator[None]:
        """Hold the lock while the block runs. Where it is taken, raises `Locked` at once, unless it is to wait."""

    def sweep(self, ttl_s: int, in_use: Collection[str], is_over: Callable[[str], bool]) -> Swept:
        """Remove what has expired, and what processes that were killed left behind. One at a time.

        `ttl_s`: when files expire that do not say so. `in_use`: files that are spared. `is_over`: whether the batch of
        this id has ended, or is not known.
        """


class DiskFiles:
    """Files in a folder: contents beside descriptions, and folders for uploads, parts, locks and what is whose."""

    def __init__(
        self, folder: Path, clock: Callable[[], float] = time.time, disk_clock: Callable[[], float] = time.time
    ) -> None:
        """The folder is made if need be, for its user alone.

        Clocks tell seconds since the epoch: `clock` is the one that all hosts share, by which files expire, and
        `disk_clock` the one by which the file system says when files were changed.
        """
        self._folder, self._clock, self._disk_clock = folder, clock, disk_clock
        self._parts, self._locks = folder / "parts", folder / "locks"
        self._uploads, self._owners = folder / "uploads", folder / "owners"
        for one in (self._folder, self._parts, self._locks, self._uploads, self._owners):
            one.mkdir(parents=True, exist_ok=True, mode=0o700)

    @contextmanager
    def receiving(self, source: BinaryIO) -> Iterator["DiskUpload"]:
        """See `Files`."""
        path = self._uploads / uuid.uuid4().hex
        try:
            with path.open("xb") as target:
                fcntl.flock(target, fcntl.LOCK_EX)  # which says, as long as this process lives, that it is not left
                digest = hashlib.sha256()
                while chunk := source.read(CHUNK):
                    target.write(chunk)
                    digest.update(chunk)
                target.flush()
                os.fsync(target.fileno())
                yield DiskUpload(self, path, target.tell(), digest.hexdigest())
        finally:
            path.unlink(missing_ok=True)

    def keep(self, path: Path, description: StoredFile, quota: Quota) -> StoredFile:
        """Make a file of what is at the path: see `Received`."""
        owner = description.owner
        with self.lock(_name_of(owner), wait=True):
            if (there := self.find(description.id)) is not None:
                return there
            check_room(self.usage(owner), quota, path.stat().st_size)
            path.rename(self._content(description.id))
            return self._describe(description)

    def find(self, file_id: str) -> StoredFile | None:
        """See `Files`."""
        found = self._read(file_id)
        return None if found is None or _has_expired(found, self._clock()) else found

    def listed(self, purpose: str | None, owner: str | None) -> list[StoredFile]:
        """See `Files`."""
        found = [self.find(file_id) for file_id in self._ids(owner)]
        kept = [one for one in found if one is not None and purpose in {None, one.purpose}]
        return sorted(kept, key=lambda one: (one.created_at, one.id), reverse=True)

    def usage(self, owner: str) -> Usage:
        """See `Files`."""
        kept = self.listed(None, owner)
        return Usage(len(kept), sum(one.bytes for one in kept))

    def open(self, file_id: str) -> BinaryIO:
        """See `Files`."""
        return self._content(file_id).open("rb")

    def delete(self, file_id: str) -> bool:
        """See `Files`."""
        described = self._read(file_id)
        try:
            self._description(file_id).unlink()
        except FileNotFoundError:
            return False
        self._content(file_id).unlink(missing_ok=True)
        if described is not None:
            self._mark(described).unlink(missing_ok=True)
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
    def lock(self, name: str, *, wait: bool = False) -> Iterator[None]:
        """See `Files`."""
        path = self._locks / _safe(name)
        while True:
            with path.open("wb") as held:
                try:
                    fcntl.flock(held, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise Locked(name) from error
                if not _is_at(path, held):  # it was swept away between the two steps
                    continue
                yield
                return

    def sweep(self, ttl_s: int, in_use: Collection[str], is_over: Callable[[str], bool]) -> Swept:
        """See `Files`."""
        return Swept(self._sweep_expired(ttl_s, in_use), self._sweep_orphans(ttl_s), self._sweep_batches(is_over))

    def _sweep_expired(self, ttl_s: int, in_use: Collection[str]) -> int:
        expired = 0
        for file_id in self._ids(None):
            found = self._read(file_id)
            if found is None:
                continue
            if _has_expired(found, self._clock(), ttl_s) and file_id not in in_use:
                expired += self.delete(file_id)
            elif not self._mark(found).exists():  # an earlier version did not note what is whose
                self._make_mark(found)
        return expired

    def _sweep_orphans(self, ttl_s: int) -> int:
        """What was under way when a process was killed."""
        old_s = max(ttl_s, LEAST_ORPHAN_S)
        paths = [path for path in self._uploads.iterdir() if self._is_left(path)]
        paths += [path for path in self._folder.glob("*.tmp") if self._age_s(path) > old_s]
        undescribed = [*self._folder.glob("*.data"), *self._owners.glob("*/*")]
        paths += [
            path for path in undescribed if self._age_s(path) > old_s and not self._description(path.stem).exists()
        ]
        for path in paths:
            path.unlink(missing_ok=True)
        return len(paths)

    def _sweep_batches(self, is_over: Callable[[str], bool]) -> int:
        """Parts and locks of batches that are over. Whoever runs a batch holds its lock, and keeps its parts."""
        parts = list(self._parts.glob(f"{BATCH_PREFIX}*"))
        locks = list(self._locks.glob(f"{BATCH_PREFIX}*"))
        swept = 0
        for batch_id in {path.name.partition("-")[0] for path in (*parts, *locks)}:
            with suppress(Locked), self.lock(batch_id):
                if is_over(batch_id):
                    left = [path for path in parts if path.name.startswith(f"{batch_id}-")]
                    for path in (*left, self._locks / batch_id):
                        path.unlink(missing_ok=True)
                        swept += 1
        return swept

    def _is_left(self, upload: Path) -> bool:
        """Whether no process writes the upload any more."""
        try:
            with upload.open("rb") as opened:
                fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return self._age_s(upload) > UNLOCKED_UPLOAD_S
        except (BlockingIOError, FileNotFoundError):
            return False

    def _age_s(self, path: Path) -> float:
        """Seconds since the file was last changed or renamed; 0 where it has gone."""
        try:
            found = path.stat()
        except FileNotFoundError:
            return 0.0
        return self._disk_clock() - max(found.st_mtime, found.st_ctime)

    def _ids(self, owner: str | None) -> list[str]:
        if owner is None:
            return [path.stem for path in self._folder.glob("*.json")]
        return [path.name for path in (self._owners / _name_of(owner)).glob("*")]

    def _read(self, file_id: str) -> StoredFile | None:
        try:
            return StoredFile.model_validate_json(self._description(file_id).read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:  # torn by a power cut, or another version's: it keeps no other from being read
            log.warning("file_unreadable file_id=%s error=%s", file_id, error)
            return None

    def _describe(self, description: StoredFile) -> StoredFile:
        """Write the description last, and whole or not at all: a file without one does not exist."""
        size = self._content(description.id).stat().st_size
        described = description.model_copy(update={"bytes": size})
        self._make_mark(described)
        path = self._description(description.id)
        unfinished = path.with_suffix(".tmp")
        unfinished.write_text(described.model_dump_json(), encoding="utf-8")
        unfinished.replace(path)
        return described

    def _make_mark(self, description: StoredFile) -> None:
        mark = self._mark(description)
        mark.parent.mkdir(exist_ok=True, mode=0o700)
        mark.touch()

    def _mark(self, description: StoredFile) -> Path:
        """An empty file that says whose the file is, so that an owner's can be found without reading all."""
        return self._owners / _name_of(description.owner) / _safe(description.id)

    def _content(self, file_id: str) -> Path:
        return self._folder / f"{_safe(file_id)}.data"

    def _description(self, file_id: str) -> Path:
        return self._folder / f"{_safe(file_id)}.json"


@dataclass(frozen=True)
class DiskUpload:
    """See `Received`."""

    files: DiskFiles
    path: Path
    num_bytes: int
    digest: str

    def keep(self, description: StoredFile, quota: Quota) -> StoredFile:
        """See `Received`."""
        return self.files.keep(self.path, description, quota)


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


def check_room(usage: Usage, quota: Quota, num_bytes: int | None = None) -> None:
    """Raise `QuotaExceeded` where there is no room for a file of so many bytes, or, without them, for any."""
    if usage.num_files >= quota.max_files:
        raise QuotaExceeded("owner_max_files", quota.max_files, usage, num_bytes)
    if usage.num_bytes + (1 if num_bytes is None else num_bytes) > quota.max_bytes:
        raise QuotaExceeded("owner_max_file_bytes", quota.max_bytes, usage, num_bytes)


def _has_expired(file: StoredFile, now_s: float, ttl_s: int | None = None) -> bool:
    """Whether its time is over; `ttl_s` is that of a file which does not say so itself."""
    expires_at = file.expires_at
    if expires_at is None and ttl_s is not None:
        expires_at = file.created_at + ttl_s
    return expires_at is not None and now_s >= expires_at


def _name_of(owner: str) -> str:
    """A name for the owner that is safe as a file's."""
    return f"owner-{hashlib.sha256(owner.encode()).hexdigest()[:32]}"


def _is_at(path: Path, opened: IO[bytes]) -> bool:
    """Whether the opened file is still the one at the path."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(opened.fileno()))
