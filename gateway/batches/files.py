"""Where batch files are kept: in a folder that all gateway processes share.

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
from typing import IO, BinaryIO

from pydantic import ValidationError

from schemas.openai_files import StoredFile

log = logging.getLogger(__name__)

#: Bytes that are copied at a time.
CHUNK = 1 << 16
#: Ids and names of parts: nothing that could lead out of the folder.
SAFE_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")
#: Prefix of the names of a batch's parts and lock.
BATCH_PREFIX = "batch_"
#: Seconds after which an upload that no process has locked was broken off. A younger one may not be locked yet.
UNLOCKED_UPLOAD_S = 60
#: Seconds after which anything that belongs to no file is removed; no step of ours takes as long.
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
    """How many files a sweep removed."""

    expired: int = 0
    #: Uploads that broke off, contents without a description, and the like.
    orphans: int = 0
    #: Parts and locks of batches that have ended.
    leftovers: int = 0


@dataclass(frozen=True)
class Upload:
    """A content that has arrived and is not a file yet."""

    path: Path
    #: SHA-256 of the content, in hexadecimal.
    digest: str


class DiskFiles:
    """Files in a folder: contents beside descriptions, and subfolders for uploads, parts, locks and owners.

    May be used from any thread; all processes that share the folder see the same files.
    """

    def __init__(
        self, folder: Path, clock: Callable[[], float] = time.time, disk_clock: Callable[[], float] = time.time
    ) -> None:
        """Makes the folder, readable by its user alone, if it is not there.

        Both clocks give seconds since the epoch. `clock` is the same on all hosts; files expire by it. `disk_clock` is
        the one that the file system takes modification times from.
        """
        self._folder, self._clock, self._disk_clock = folder, clock, disk_clock
        self._parts, self._locks = folder / "parts", folder / "locks"
        self._uploads, self._owners = folder / "uploads", folder / "owners"
        for path in (self._folder, self._parts, self._locks, self._uploads, self._owners):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)

    @contextmanager
    def receiving(self, source: BinaryIO) -> Iterator[Upload]:
        """Copy the stream to disk, a chunk at a time. The copy is deleted after the block unless it was kept."""
        path = self._uploads / uuid.uuid4().hex
        try:
            with path.open("xb") as target:
                fcntl.flock(target, fcntl.LOCK_EX)  # while this process lives, no sweep removes the upload
                digest = hashlib.sha256()
                while chunk := source.read(CHUNK):
                    target.write(chunk)
                    digest.update(chunk)
                target.flush()
                os.fsync(target.fileno())
                yield Upload(path, digest.hexdigest())
        finally:
            path.unlink(missing_ok=True)

    def keep(self, upload: Upload, description: StoredFile, quota: Quota) -> StoredFile:
        """Make a file of the upload and return its description with the size.

        If the id is taken, returns that file's description. Raises `QuotaExceeded`.
        """
        owner = description.owner
        with self.lock(_folder_name(owner), wait=True):
            if (existing := self.find(description.id)) is not None:
                return existing
            check_room(self.usage(owner), quota, upload.path.stat().st_size)
            upload.path.rename(self._content(description.id))
            return self._describe(description)

    def find(self, file_id: str) -> StoredFile | None:
        """The file's description; None where there is no such file, or it has expired."""
        found = self._read(file_id)
        return None if found is None or _has_expired(found, self._clock()) else found

    def listed(self, purpose: str | None, owner: str | None) -> list[StoredFile]:
        """Descriptions, the newest first: of the owner's files, or for None of everybody's."""
        found = [self.find(file_id) for file_id in self._ids(owner)]
        kept = [file for file in found if file is not None and purpose in {None, file.purpose}]
        return sorted(kept, key=lambda file: (file.created_at, file.id), reverse=True)

    def usage(self, owner: str) -> Usage:
        """What the owner keeps."""
        kept = self.listed(None, owner)
        return Usage(len(kept), sum(file.bytes for file in kept))

    def open(self, file_id: str) -> BinaryIO:
        """The content, also that of an expired file which is still on disk. Raises FileNotFoundError."""
        return self._content(file_id).open("rb")

    def delete(self, file_id: str) -> bool:
        """Delete the file; False where there is none."""
        description = self._read(file_id)
        try:
            self._description(file_id).unlink()
        except FileNotFoundError:
            return False
        self._content(file_id).unlink(missing_ok=True)
        if description is not None:
            self._owner_entry(description).unlink(missing_ok=True)
        return True

    def part(self, name: str) -> "Part":
        """The part of this name, as far as it has been written."""
        return Part(self._parts / _safe(name))

    def publish(self, name: str, description: StoredFile) -> StoredFile | None:
        """Make a file of the part, whatever its owner's quota; None if the part is empty. Idempotent."""
        part, content = self._parts / _safe(name), self._content(description.id)
        if part.exists() and part.stat().st_size > 0:
            part.rename(content)
        part.unlink(missing_ok=True)
        return self._describe(description) if content.exists() else None

    @contextmanager
    def lock(self, name: str, *, wait: bool = False) -> Iterator[None]:
        """Hold the lock for the block. Where it is taken, raises `Locked` at once, or waits."""
        path = self._locks / _safe(name)
        while True:
            with path.open("wb") as lock_file:
                try:
                    fcntl.flock(lock_file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise Locked(name) from error
                if not _is_at(path, lock_file):  # a sweep removed it between the two steps
                    continue
                yield
                return

    def sweep(self, ttl_s: int, in_use: Collection[str], is_over: Callable[[str], bool]) -> Swept:
        """Remove expired files, and what killed processes left behind. Not for two callers at once.

        `ttl_s`: how long files live that have no `expires_at`. `in_use`: ids of files that stay. `is_over`: whether the
        batch of this id has ended or is unknown.
        """
        return Swept(self._sweep_expired(ttl_s, in_use), self._sweep_orphans(ttl_s), self._sweep_batches(is_over))

    def _sweep_expired(self, ttl_s: int, in_use: Collection[str]) -> int:
        expired = 0
        for file_id in self._ids(None):
            found = self._read(file_id)
            if found is None:
                continue
            if _has_expired(found, self._clock(), ttl_s) and file_id not in in_use:
                expired += self.delete(file_id)
            elif not self._owner_entry(found).exists():  # written by a version without owners' folders
                self._add_owner_entry(found)
        return expired

    def _sweep_orphans(self, ttl_s: int) -> int:
        """Remove what killed processes were writing."""
        max_age_s = max(ttl_s, LEAST_ORPHAN_S)
        paths = [path for path in self._uploads.iterdir() if self._is_abandoned(path)]
        paths += [path for path in self._folder.glob("*.tmp") if self._age_s(path) > max_age_s]
        undescribed = [*self._folder.glob("*.data"), *self._owners.glob("*/*")]
        paths += [
            path for path in undescribed if self._age_s(path) > max_age_s and not self._description(path.stem).exists()
        ]
        for path in paths:
            path.unlink(missing_ok=True)
        return len(paths)

    def _sweep_batches(self, is_over: Callable[[str], bool]) -> int:
        """Remove parts and locks of batches that have ended. A batch that runs is locked."""
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

    def _is_abandoned(self, upload: Path) -> bool:
        """Whether no process writes the upload any more."""
        try:
            with upload.open("rb") as opened:
                fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return self._age_s(upload) > UNLOCKED_UPLOAD_S
        except (BlockingIOError, FileNotFoundError):
            return False

    def _age_s(self, path: Path) -> float:
        """Seconds since the file was last changed or renamed; 0 if it is gone."""
        try:
            found = path.stat()
        except FileNotFoundError:
            return 0.0
        return self._disk_clock() - max(found.st_mtime, found.st_ctime)

    def _ids(self, owner: str | None) -> list[str]:
        if owner is None:
            return [path.stem for path in self._folder.glob("*.json")]
        return [path.name for path in (self._owners / _folder_name(owner)).glob("*")]

    def _read(self, file_id: str) -> StoredFile | None:
        try:
            return StoredFile.model_validate_json(self._description(file_id).read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:  # torn by a power cut, or another version's; others can be read
            log.warning("file_unreadable file_id=%s error=%s", file_id, error)
            return None

    def _describe(self, description: StoredFile) -> StoredFile:
        """Write the description, whole or not at all. It comes last: a file without one does not exist."""
        size = self._content(description.id).stat().st_size
        described = description.model_copy(update={"bytes": size})
        self._add_owner_entry(described)
        path = self._description(description.id)
        unfinished = path.with_suffix(".tmp")
        unfinished.write_text(described.model_dump_json(), encoding="utf-8")
        unfinished.replace(path)
        return described

    def _add_owner_entry(self, description: StoredFile) -> None:
        entry = self._owner_entry(description)
        entry.parent.mkdir(exist_ok=True, mode=0o700)
        entry.touch()

    def _owner_entry(self, description: StoredFile) -> Path:
        """An empty file in its owner's folder, by which an owner's files are found without reading all descriptions."""
        return self._owners / _folder_name(description.owner) / _safe(description.id)

    def _content(self, file_id: str) -> Path:
        return self._folder / f"{_safe(file_id)}.data"

    def _description(self, file_id: str) -> Path:
        return self._folder / f"{_safe(file_id)}.json"


class Part:
    """A file that is being written. One writer at a time, which must hold the batch's lock."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a+b", buffering=0)

    def lines(self) -> Iterator[bytes]:
        """The whole lines that this process or an earlier one has written. A torn last line is cut off."""
        self._file.seek(0)
        num_bytes = 0
        with os.fdopen(os.dup(self._file.fileno()), "rb") as reader:
            for line in reader:
                if line.endswith(b"\n"):
                    num_bytes += len(line)
                    yield line
        self._file.truncate(num_bytes)

    def append(self, line: bytes) -> None:
        """Add a line. It survives the death of this process, since the operating system has it then."""
        self._file.write(line)

    def close(self) -> None:
        """Sync to disk and close."""
        os.fsync(self._file.fileno())
        self._file.close()


def _safe(name: str) -> str:
    """The same name. Raises FileNotFoundError for one that is not safe."""
    if not SAFE_NAME.fullmatch(name):
        raise FileNotFoundError(name)
    return name


def check_room(usage: Usage, quota: Quota, num_bytes: int | None = None) -> None:
    """Raise `QuotaExceeded` if there is no room for a file of `num_bytes`; without `num_bytes`, for any file."""
    if usage.num_files >= quota.max_files:
        raise QuotaExceeded("owner_max_files", quota.max_files, usage, num_bytes)
    if usage.num_bytes + (1 if num_bytes is None else num_bytes) > quota.max_bytes:
        raise QuotaExceeded("owner_max_file_bytes", quota.max_bytes, usage, num_bytes)


def _has_expired(file: StoredFile, now_s: float, ttl_s: int | None = None) -> bool:
    """Whether the file has expired; `ttl_s` counts for a file without `expires_at`."""
    expires_at = file.expires_at
    if expires_at is None and ttl_s is not None:
        expires_at = file.created_at + ttl_s
    return expires_at is not None and now_s >= expires_at


def _folder_name(owner: str) -> str:
    """The name of the owner's folder and lock."""
    return f"owner-{hashlib.sha256(owner.encode()).hexdigest()[:32]}"


def _is_at(path: Path, opened: IO[bytes]) -> bool:
    """Whether the opened file is still at the path."""
    try:
        current = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(current, os.fstat(opened.fileno()))
